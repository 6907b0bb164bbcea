// The baseline: 16-byte vectors in plain C++ vector extensions, for any 64-bit target.

#if defined(FUSED_RNN_BASELINE_AS_WIDE_AS_AVX512)  // On machines without, to test its tiles.
#include "cpu/simd/avx512_sizes.h"
#else
constexpr int kSimdBytes = 16;
constexpr int kTileSums = 12;  // accumulators of a tile: leaves 4 of 16 registers for operands
// A part of a product (product.h), as for AVX2.
constexpr int64_t kDepth = 256;
constexpr int64_t kBlocksAbreast = 32;
#endif

#include "cpu/simd/native.h"

template <typename N>
FUSED_RNN_INLINE N native_fma(N a, N b, N c) {
  return a * b + c;
}

// b where either is a NaN.
template <typename N>
FUSED_RNN_INLINE N native_min(N a, N b) {
  return a < b ? a : b;
}
template <typename N>
FUSED_RNN_INLINE N native_max(N a, N b) {
  return a > b ? a : b;
}

template <typename T>
FUSED_RNN_INLINE typename NativeVector<T>::type load_partial(const T* p, int n) {
  typename NativeVector<T>::type v{};
  __builtin_memcpy(&v, p, static_cast<size_t>(n) * sizeof(T));
  return v;
}

template <typename T, typename N>
FUSED_RNN_INLINE void store_partial(T* p, N v, int n) {
  __builtin_memcpy(p, &v, static_cast<size_t>(n) * sizeof(T));
}
