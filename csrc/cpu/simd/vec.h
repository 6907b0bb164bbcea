// One vector of the instruction set that is being compiled, for float and double.
//
// Included once for each instruction set, inside its namespace and under its target pragma, so
// there is no include guard. Before it, simd/<set>.h gives kSimdBytes and the few operations that
// C++ vector extensions have no spelling for.

template <typename T>
struct Vec {
  static constexpr int kLanes = kSimdBytes / static_cast<int>(sizeof(T));
  using Native = typename NativeVector<T>::type;
  using Integer = typename NativeVector<T>::integer;

  Native v;

  static FUSED_RNN_INLINE Vec load(const T* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof(Native));
    return r;
  }
  FUSED_RNN_INLINE void store(T* p) const { __builtin_memcpy(p, &v, sizeof(Native)); }

  // The first n lanes, 0 < n <= kLanes; the others read as zero and are not written.
  static FUSED_RNN_INLINE Vec load(const T* p, int n) {
    return n == kLanes ? load(p) : Vec{load_partial(p, n)};
  }
  FUSED_RNN_INLINE void store(T* p, int n) const {
    if (n == kLanes) {
      store(p);
    } else {
      store_partial(p, v, n);
    }
  }

  static FUSED_RNN_INLINE Vec zero() { return Vec{Native{}}; }
  static FUSED_RNN_INLINE Vec broadcast(T x) { return Vec{x - Native{}}; }
};

template <typename T>
FUSED_RNN_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return {a.v + b.v};
}
template <typename T>
FUSED_RNN_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return {a.v - b.v};
}
template <typename T>
FUSED_RNN_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return {a.v * b.v};
}
template <typename T>
FUSED_RNN_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return {a.v / b.v};
}

// a * b + c, rounded once where the machine has such an instruction.
template <typename T>
FUSED_RNN_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return {native_fma(a.v, b.v, c.v)};
}

// x limited to [lo, hi]. A NaN stays a NaN.
template <typename T>
FUSED_RNN_INLINE Vec<T> clamp(Vec<T> x, T lo, T hi) {
  return {native_max(Vec<T>::broadcast(lo).v, native_min(Vec<T>::broadcast(hi).v, x.v))};
}

// b where a <= 0, else c; c where a is a NaN.
template <typename T>
FUSED_RNN_INLINE Vec<T> select_if_not_positive(Vec<T> a, Vec<T> b, Vec<T> c) {
  return {a.v <= typename Vec<T>::Native{} ? b.v : c.v};
}
