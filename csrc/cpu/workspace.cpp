#include "cpu/workspace.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_rnn {
namespace {

std::byte* allocate(size_t bytes) {
  const size_t rounded = (bytes + Arena::kAlignment - 1) / Arena::kAlignment * Arena::kAlignment;
  void* block = std::aligned_alloc(Arena::kAlignment, rounded > 0 ? rounded : Arena::kAlignment);
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
