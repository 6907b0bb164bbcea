// The kernels for AVX2 and FMA, float.
#include "cpu/dispatch.h"
#include "cpu/prelude.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace fused_rnn::avx2 {
#include "cpu/simd/avx2.h"
//
#include "cpu/kernel_table.h"

template const Kernels<float>& kernel_table<float>();
}  // namespace fused_rnn::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
