// The kernels for AVX-512 with dot products of bfloat16.
#include "cpu/dispatch.h"
#include "cpu/prelude.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif

// A namespace of its own: what it has in common with avx512 is compiled for another target.
namespace fused_rnn::avx512_bf16 {
#include "cpu/simd/avx512.h"
//
#include "cpu/kernel_table.h"
//
#include "cpu/simd/bfloat16.h"

template const Kernels<bfloat16>& kernel_table<bfloat16>();
}  // namespace fused_rnn::avx512_bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
