#include "cpu/workspace.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_rnn {
namespace {

// From this size on a block asks for huge pages: its first use costs a page fault for each page
// (34 MiB: 24 ms in pages of 4 KiB, 1.6 ms in huge ones).
constexpr size_t kHugePage = size_t{2} << 20;

std::byte* allocate(size_t bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : Arena::kAlignment;
  const size_t rounded = bytes == 0 ? alignment : (bytes + alignment - 1) / alignment * alignment;
  void* block = std::aligned_alloc(alignment, rounded);
  if (block == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  // Advice only: where it is refused the block is merely slower.
  if (alignment == kHugePage) (void)madvise(block, rounded, MADV_HUGEPAGE);
#endif
  return static_cast<std::byte*>(block);
}

struct Kept {
  std::byte* block = nullptr;
  size_t bytes = 0;
  bool in_use = false;
  ~Kept() { std::free(block); }
};

thread_local Kept kept;

}  // namespace

Workspace::Workspace(size_t bytes) : bytes_(bytes) {
  if (bytes > kKept || kept.in_use) {
    block_ = allocate(bytes);
    owned_ = true;
  } else {
    if (bytes > kept.bytes) {
      std::free(kept.block);
      kept.block = nullptr;
      kept.bytes = 0;
      kept.block = allocate(bytes);
      kept.bytes = bytes;
    }
    block_ = kept.block;
    kept.in_use = true;
    owned_ = false;
  }
}

Workspace::~Workspace() {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(block_, owned_ ? bytes_ : kept.bytes);
#endif
  if (owned_) {
    std::free(block_);
  } else {
    kept.in_use = false;
  }
}

}  // namespace fused_rnn
