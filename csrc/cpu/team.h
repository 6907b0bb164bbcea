// A team of threads inside one parallel region, and the barrier between its phases.
#pragma once

#include <atomic>
#include <memory>
#include <thread>

#include "cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_rnn {

// Waits until `holds`: a waiter spins, since a step takes microseconds, then yields, since there
// may be fewer cores than threads.
template <typename Condition>
void wait_until(const Condition& holds) {
  constexpr int kSpins = 1000;  // tens of microseconds
  for (int spins = 0; spins < kSpins; ++spins) {
    if (holds()) return;
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
  while (!holds()) std::this_thread::yield();
}

// Where all threads of a team wait until the last has come. It takes rounds: in round r thread i
// tells thread i + 2^r that it has come, as have all who told it so before, and waits to be told by
// thread i - 2^r (dissemination; Hensgen, Finkel and Manber, 1988). Two threads write one line each
// and read the other's, 50 ns on a Zen 3, where counting those who have come took 80.
class Barrier {
 public:
  explicit Barrier(int most) : most_(most) {  // threads
    int rounds = 0;
    while ((1 << rounds) < most) ++rounds;
    if (rounds > 0) told_ = std::make_unique<Line[]>(static_cast<size_t>(rounds * most));
  }

  // One thread of a team.
  class Member {
   public:
    Member(Barrier& barrier, int id, int team) : barrier_(barrier), id_(id), team_(team) {}

    void wait() {
      ++generation_;
      for (int round = 0, distance = 1; distance < team_; ++round, distance *= 2) {
        barrier_.line(round, (id_ + distance) % team_)
            .generation.store(generation_, std::memory_order_release);
        await(barrier_.line(round, id_).generation);
      }
    }

   private:
    void await(const std::atomic<unsigned>& told) const {
      // Whoever tells may already be at the next barrier.
      wait_until([&] {
        return static_cast<int>(told.load(std::memory_order_acquire) - generation_) >= 0;
      });
    }

    Barrier& barrier_;
    int id_, team_;
    unsigned generation_ = 0;
  };

 private:
  struct alignas(64) Line {
    std::atomic<unsigned> generation{0};
  };

  Line& line(int round, int id) { return told_[static_cast<size_t>(round * most_ + id)]; }

  int most_;
  std::unique_ptr<Line[]> told_;  // [rounds][most]
};

// How many steps of a layer are done, for the layer that begins with its results.
class alignas(64) Progress {
 public:
  void reach(int64_t steps) { done_.store(steps, std::memory_order_release); }

  // Returns how many are done: at least `steps`.
  int64_t await(int64_t steps) const {
    int64_t done = 0;
    wait_until([&] { return (done = done_.load(std::memory_order_acquire)) >= steps; });
    return done;
  }

 private:
  std::atomic<int64_t> done_{0};
};

// A layer among those of a stack that run at the same time, each on a thread of its own: it begins
// with the results of the one before it and gives its own to the one after. Neither, where layers
// run one after another.
class Neighbours {
 public:
  Neighbours() = default;
  Neighbours(const Progress* before, Progress* own) : before_(before), own_(own) {}

  bool has_before() const { return before_ != nullptr; }
  bool has_after() const { return own_ != nullptr; }

  void await(int64_t steps) {
    if (before_ != nullptr && seen_ < steps) seen_ = before_->await(steps);
  }
  void reach(int64_t steps) {
    if (own_ != nullptr) own_->reach(steps);
  }

 private:
  const Progress* before_ = nullptr;
  Progress* own_ = nullptr;
  int64_t seen_ = 0;  // steps of the one before
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
