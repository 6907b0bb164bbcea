// What every kernel source includes before its target pragma: all standard headers, and our own
// that other sources include as well, so that their inline functions are compiled for the baseline.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpu/kernels.h"
#include "cpu/team.h"
#include "cpu/workspace.h"

#define FUSED_RNN_INLINE inline __attribute__((always_inline))

// An inline assembly operand that is read and written in a vector register, where there is one.
#if defined(__x86_64__) && !defined(FUSED_RNN_BASELINE_AS_WIDE_AS_AVX512)
#define FUSED_RNN_VECTOR_OPERAND(x) "+v"(x)
#elif defined(__aarch64__)
#define FUSED_RNN_VECTOR_OPERAND(x) "+w"(x)
#else
#define FUSED_RNN_VECTOR_OPERAND(x) "+m"(x)
#endif

namespace fused_rnn {

template <int... I>
using Lanes = std::integer_sequence<int, I...>;
template <int N>
using LaneSequence = std::make_integer_sequence<int, N>;

}  // namespace fused_rnn
