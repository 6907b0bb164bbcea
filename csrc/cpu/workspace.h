// Scratch memory of a kernel call: one block, taken before the first step and cut into arrays.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace fused_rnn {

// From this size on memory asks for huge pages.
constexpr size_t kHugePage = size_t{2} << 20;

// At least `bytes` bytes, aligned to 64 bytes or to huge pages, or null where there is no memory.
// std::free gives it back.
void* allocate(size_t bytes);

// Cuts a block into arrays. Over no block (null) it only counts, so that the same code first asks
// how much is needed and then lays it out.
class Arena {
 public:
  static constexpr size_t kAlignment = 64;

  explicit Arena(std::byte* block) : block_(block) {}

  template <typename T>
  T* take(int64_t count) {
    std::byte* p = block_ == nullptr ? nullptr : block_ + used_;
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
#if defined(__SANITIZE_ADDRESS__)
    // What follows an array, up to the next one, is out of bounds.
    used_ += kAlignment;
    if (p != nullptr) ASAN_POISON_MEMORY_REGION(p + bytes, block_ + used_ - (p + bytes));
#endif
    return reinterpret_cast<T*>(p);
  }

  size_t used() const { return used_; }

 private:
  std::byte* block_;
  size_t used_ = 0;
};

// The block of one layer. The thread that took it keeps it between calls up to kKept bytes, so
// that small calls allocate nothing and large ones hold no memory that they no longer use.
class Workspace {
 public:
  static constexpr size_t kKept = size_t{64} << 20;

  explicit Workspace(size_t bytes);  // throws std::bad_alloc
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  std::byte* block() const { return block_; }

 private:
  std::byte* block_;
  [[maybe_unused]] size_t bytes_;  // for the address sanitizer
  bool owned_;
};

}  // namespace fused_rnn
