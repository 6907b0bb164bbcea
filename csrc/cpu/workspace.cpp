#include "cpu/workspace.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_rnn {

// The first use of memory costs a page fault for each of its pages (34 MiB: 24 ms in pages of
// 4 KiB, 1.6 ms in huge ones). Only whole huge pages are asked for: the rest of the last one would
// be memory that nobody uses.
void* allocate(size_t bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : Arena::kAlignment;
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes == 0 ? 1 : bytes) != 0) return nullptr;
#if defined(__linux__)
  // Advice only: where it is refused the memory is merely slower.
  if (alignment == kHugePage) (void)madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return memory;
}

namespace {

std::byte* allocate_block(size_t bytes) {
  void* const block = allocate(bytes);
  if (block == nullptr) throw std::bad_alloc();
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
    block_ = allocate_block(bytes);
    owned_ = true;
  } else {
    if (bytes > kept.bytes) {
      std::free(kept.block);
      kept.block = nullptr;
      kept.bytes = 0;
      kept.block = allocate_block(bytes);
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
