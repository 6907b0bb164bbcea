// The vector types of kSimdBytes bytes, in the extension that GCC and clang share. Included by
// simd/<set>.h, which says how wide its vectors are.

template <typename T>
struct NativeVector;

template <>
struct NativeVector<float> {
  using type = float __attribute__((vector_size(kSimdBytes)));
  using integer = int32_t __attribute__((vector_size(kSimdBytes)));
};

template <>
struct NativeVector<double> {
  using type = double __attribute__((vector_size(kSimdBytes)));
  using integer = int64_t __attribute__((vector_size(kSimdBytes)));
};
