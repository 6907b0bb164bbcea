// The kernels for AVX-512, double.
#include "cpu/dispatch.h"
#include "cpu/prelude.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

namespace fused_rnn::avx512 {
#include "cpu/simd/avx512.h"
//
#include "cpu/kernel_table.h"

template const Kernels<double>& kernel_table<double>();
}  // namespace fused_rnn::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
