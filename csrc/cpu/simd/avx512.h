// AVX-512 (F, BW, DQ, VL): 64-byte vectors, 32 registers.

#include "cpu/simd/avx512_sizes.h"
//
#include "cpu/simd/native.h"

FUSED_RNN_INLINE __m512 native_fma(__m512 a, __m512 b, __m512 c) {
  return _mm512_fmadd_ps(a, b, c);
}
FUSED_RNN_INLINE __m512d native_fma(__m512d a, __m512d b, __m512d c) {
  return _mm512_fmadd_pd(a, b, c);
}

// Of the zero-masking kind: the plain ones make GCC 12 warn of their own uninitialised operand.
// b where either is a NaN.
FUSED_RNN_INLINE __m512 native_min(__m512 a, __m512 b) {
  return _mm512_maskz_min_ps(0xFFFF, a, b);
}
FUSED_RNN_INLINE __m512d native_min(__m512d a, __m512d b) {
  return _mm512_maskz_min_pd(0xFF, a, b);
}
FUSED_RNN_INLINE __m512 native_max(__m512 a, __m512 b) {
  return _mm512_maskz_max_ps(0xFFFF, a, b);
}
FUSED_RNN_INLINE __m512d native_max(__m512d a, __m512d b) {
  return _mm512_maskz_max_pd(0xFF, a, b);
}

FUSED_RNN_INLINE __m512 load_partial(const float* p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << n) - 1), p);
}
FUSED_RNN_INLINE __m512d load_partial(const double* p, int n) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1U << n) - 1), p);
}
FUSED_RNN_INLINE void store_partial(float* p, __m512 v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1U << n) - 1), v);
}
FUSED_RNN_INLINE void store_partial(double* p, __m512d v, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1U << n) - 1), v);
}
