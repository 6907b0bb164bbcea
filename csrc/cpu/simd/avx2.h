// AVX2 and FMA: 32-byte vectors, 16 registers.

constexpr int kSimdBytes = 32;
constexpr int kTileSums = 12;  // accumulators of a tile: leaves 4 of 16 registers for operands
// A part of a product (product.h): its panels take 128 KB, a quarter of the L2 of a Zen 3 (parts of
// 512 x 4 blocks: backward of LSTM and GRU H = 512, B = 32 3 to 5 % slower).
constexpr int64_t kDepth = 256;
constexpr int64_t kBlocksAbreast = 16;

#include "cpu/simd/native.h"

FUSED_RNN_INLINE __m256 native_fma(__m256 a, __m256 b, __m256 c) {
  return _mm256_fmadd_ps(a, b, c);
}
FUSED_RNN_INLINE __m256d native_fma(__m256d a, __m256d b, __m256d c) {
  return _mm256_fmadd_pd(a, b, c);
}

// b where either is a NaN.
FUSED_RNN_INLINE __m256 native_min(__m256 a, __m256 b) {
  return _mm256_min_ps(a, b);
}
FUSED_RNN_INLINE __m256d native_min(__m256d a, __m256d b) {
  return _mm256_min_pd(a, b);
}
FUSED_RNN_INLINE __m256 native_max(__m256 a, __m256 b) {
  return _mm256_max_ps(a, b);
}
FUSED_RNN_INLINE __m256d native_max(__m256d a, __m256d b) {
  return _mm256_max_pd(a, b);
}

FUSED_RNN_INLINE __m256i lane_mask(const float*, int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FUSED_RNN_INLINE __m256i lane_mask(const double*, int n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

FUSED_RNN_INLINE __m256 load_partial(const float* p, int n) {
  return _mm256_maskload_ps(p, lane_mask(p, n));
}
FUSED_RNN_INLINE __m256d load_partial(const double* p, int n) {
  return _mm256_maskload_pd(p, lane_mask(p, n));
}
FUSED_RNN_INLINE void store_partial(float* p, __m256 v, int n) {
  _mm256_maskstore_ps(p, lane_mask(p, n), v);
}
FUSED_RNN_INLINE void store_partial(double* p, __m256d v, int n) {
  _mm256_maskstore_pd(p, lane_mask(p, n), v);
}
