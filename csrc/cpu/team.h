// A team of threads inside one parallel region, and the barrier between its phases.
#pragma once

#include <atomic>
#include <thread>

#include "cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_rnn {

// All threads of the team wait until the last has come. A waiter spins, since a step takes
// microseconds, then yields, since there may be fewer cores than threads.
class Barrier {
 public:
  void wait(int team) {
    if (team == 1) return;
    const int generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == team - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; spins < kSpins; ++spins) {
      if (generation_.load(std::memory_order_acquire) != generation) return;
      pause();
    }
    while (generation_.load(std::memory_order_acquire) == generation) std::this_thread::yield();
  }

 private:
  static constexpr int kSpins = 1000;  // tens of microseconds

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

// body(id, team) on up to `count` threads.
template <typename Body>
void run_team(const Threads& threads, int count, Body& body) {
  if (count > threads.limit) count = threads.limit;
  if (count <= 1) {
    body(0, 1);
    return;
  }
  threads.run(
      count, [](void* context, int id, int team) { (*static_cast<Body*>(context))(id, team); },
      &body);
}

// The share of [0, n) that falls to part `id` of `parts`.
struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

inline Range share(int64_t n, int64_t parts, int64_t id) {
  const int64_t each = n / parts;
  const int64_t rest = n % parts;
  const int64_t begin = id * each + (id < rest ? id : rest);
  return {begin, begin + each + (id < rest ? 1 : 0)};
}

}  // namespace fused_rnn
