// In the place of the kernels for AVX-512, which take minutes to compile, on machines that cannot
// run them.

#include "cpu/dispatch.h"

namespace fused_rnn {

template <typename E>
const Kernels<E>& no_kernels() {
  static constexpr Kernels<E> kNone{};
  return kNone;
}

template <>
const Kernels<float>& avx512::kernel_table<float>() {
  return no_kernels<float>();
}
template <>
const Kernels<double>& avx512::kernel_table<double>() {
  return no_kernels<double>();
}
template <>
const Kernels<bfloat16>& avx512_bf16::kernel_table<bfloat16>() {
  return no_kernels<bfloat16>();
}

}  // namespace fused_rnn
