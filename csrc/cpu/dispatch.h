// Which instruction set runs: the best that the machine has, unless the environment variable
// FUSED_RNN_CPU_ISA or the caller names another.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace fused_rnn {

enum class Isa { baseline, avx2, avx512 };

const char* isa_name(Isa isa);
std::vector<Isa> built_isas();      // in this binary, least first
std::vector<Isa> available_isas();  // of those, the ones the machine can run

struct ActiveIsa {
  Isa isa;
  std::string reason;
};
ActiveIsa active_isa();

// Chooses by name; an empty name goes back to the environment or detection. Throws
// std::invalid_argument for a name that is unknown, not built or not available.
void choose_isa(const std::string& name);

// The kernels for float or double.
template <typename T>
const Kernels<T>& kernels();

// The kernels for bfloat16, or null: there are some for avx512 on machines with AVX512_BF16.
const Kernels<bfloat16>* bfloat16_kernels();

// Those, or null where converting to float is faster: Intel's processors with a matrix unit (AMX)
// run dot products of bfloat16 slower than float's multiply-adds. On one thread of a Sapphire
// Rapids layers made 82 GF/s of the ones and 140 of the others, LSTM H = 128, T = 100, B = 32 10.6
// ms and 6.0.
const Kernels<bfloat16>* fast_bfloat16_kernels();

// The tables, one for each instruction set and type, in isa_<set>_<type>.cpp.
namespace baseline {
template <typename T>
const Kernels<T>& kernel_table();
}
namespace avx2 {
template <typename T>
const Kernels<T>& kernel_table();
}
namespace avx512 {
template <typename T>
const Kernels<T>& kernel_table();
}
namespace avx512_bf16 {
template <typename E>
const Kernels<E>& kernel_table();
}

}  // namespace fused_rnn
