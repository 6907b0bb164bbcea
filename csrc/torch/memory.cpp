#include "torch/memory.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "cpu/workspace.h"

namespace fused_rnn {
namespace {

// Results of less than this come from torch's allocator.
constexpr size_t kSmallest = 4096;

// Blocks that results no longer need, for the next results of about their size: a loop of training
// steps frees and takes the same sizes again and again.
class Recycled {
 public:
  struct Block {
    void* memory;
    size_t bytes;
  };

  // The blocks of about this size: large ones apart, so that many small ones do not push them out.
  static Recycled& of(size_t bytes) {
    // Never destroyed, since tensors may outlive every static object.
    static auto& small = *new Recycled(size_t{16} << 20, 256);
    static auto& large = *new Recycled(size_t{64} << 20, 32);
    return bytes < kHugePage ? small : large;
  }

  // A block of at least `bytes` bytes and at most a quarter more, or null.
  Block take(size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return {};
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
      if (block->bytes < bytes || block->bytes > bytes + bytes / 4) continue;
      const Block found = *block;
      blocks_.erase(std::next(block).base());
      bytes_ -= found.bytes;
      return found;
    }
    return {};
  }

  // Keeps the block; the oldest make room for it. Does not throw.
  void give(Block block) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || block.bytes > most_bytes_) return std::free(block.memory);
    while (bytes_ + block.bytes > most_bytes_ || blocks_.size() == most_blocks_) {
      std::free(blocks_.front().memory);
      bytes_ -= blocks_.front().bytes;
      blocks_.erase(blocks_.begin());
    }
    blocks_.push_back(block);
    bytes_ += block.bytes;
  }

 private:
  Recycled(size_t most_bytes, size_t most_blocks)
      : most_bytes_(most_bytes), most_blocks_(most_blocks) {
    blocks_.reserve(most_blocks);
  }

  const size_t most_bytes_;
  const size_t most_blocks_;
  // Only ever tried: a process that was forked while another thread held it would wait forever.
  std::mutex mutex_;
  std::vector<Block> blocks_;  // the oldest first
  size_t bytes_ = 0;
};

// torch's allocator takes what malloc gives, in pages of 4 KiB: memory that was not in use before
// costs 0.4 ms a MiB in page faults, in huge pages an eighth of it at best. The gradients of an
// LSTMCell's weights at H = 512 are 8 MiB a step, which 16 rows compute in less than 0.5 ms. What
// malloc gives back to the system, from the top of its heap, and when, depends on all that the
// program did: the same training step of an LSTM, T = 60, H = 32, one row, whose largest result has
// 30 KB, took 43 us in one program and 74 in another.
class Results final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kSmallest) return c10::GetDefaultCPUAllocator()->allocate(bytes);
    auto block = std::make_unique<Recycled::Block>(Recycled::of(bytes).take(bytes));
    if (block->memory == nullptr) *block = {fused_rnn::allocate(bytes), bytes};
    // For torch's error.
    if (block->memory == nullptr) return c10::GetDefaultCPUAllocator()->allocate(bytes);
    c10::profiledCPUMemoryReporter().New(block->memory, bytes);
    void* const memory = block->memory;
    return {memory, block.release(), &release, at::Device(at::kCPU)};
  }

  // Whether the memory is as allocate() gave it: what a lazy clone asks before it wraps the context
  // of a storage in one of its own.
  bool is_simple_data_ptr(const c10::DataPtr& data) const override {
    return data.get_deleter() == &release || c10::Allocator::is_simple_data_ptr(data);
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void release(void* context) {
    const std::unique_ptr<Recycled::Block> block(static_cast<Recycled::Block*>(context));
    c10::profiledCPUMemoryReporter().Delete(block->memory);
    Recycled::of(block->bytes).give(*block);
  }
};

}  // namespace

// Not through the dispatcher, which below the CPU key has nothing to add.
at::Tensor empty(at::IntArrayRef sizes, at::ScalarType type) {
  static Results results;
  const auto bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * c10::elementSize(type);
  // An allocator that the program gave torch is not passed by.
  if (bytes < kSmallest || c10::GetCPUAllocator() != c10::GetDefaultCPUAllocator())
    return at::detail::empty_cpu(sizes, type);
  return at::detail::empty_generic(sizes, &results, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   type, std::nullopt);
}

}  // namespace fused_rnn
