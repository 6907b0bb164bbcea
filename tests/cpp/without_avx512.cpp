// In the place of the kernels for AVX-512, which take minutes to compile, on machines that cannot
// run them.

#include "cpu/dispatch.h"

namespace fused_rnn {

namespace avx512 {
template <typename T>
const Kernels<T>& kernel_table() {
  static constexpr Kernels<T> kNone{};
  return kNone;
}
template const Kernels<float>& kernel_table<float>();
template const Kernels<double>& kernel_table<double>();
}  // namespace avx512

namespace avx512_bf16 {
template <typename E>
const Kernels<E>& kernel_table() {
  static constexpr Kernels<E> kNone{};
  return kNone;
}
template const Kernels<bfloat16>& kernel_table<bfloat16>();
}  // namespace avx512_bf16

}  // namespace fused_rnn
