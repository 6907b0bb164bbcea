// What products read: elements of type E, kGroup of which that follow each other along k share a
// lane of the sums. Vectors of T = sum_t<E> hold the sums and everything that cells compute.
//
// Here for types that are summed as what they are, one element a lane; simd/bfloat16.h has pairs.

template <typename E>
struct Operand {
  using T = sum_t<E>;
  using V = Vec<E>;  // a vector of a panel, or the groups of a row: kLanes groups
  static constexpr int kGroup = 1;
  static constexpr int kElements = Vec<T>::kLanes * kGroup;

  static FUSED_RNN_INLINE V load(const E* p, int n = kElements) { return V::load(p, n); }
  static FUSED_RNN_INLINE V broadcast(const E* group) { return V::broadcast(*group); }
  // The first n < kGroup elements of a group, and zeros.
  static FUSED_RNN_INLINE V broadcast(const E* group, int) { return V::broadcast(*group); }
  // n <= kLanes columns of a group of rows of a right-hand operand. `rows` are kGroup, null for
  // those past the last.
  static FUSED_RNN_INLINE void pack(const E* const* rows, int n, E* to) {
    V::load(rows[0], n).store(to);
  }

  // n <= kLanes elements as sums, and sums as elements.
  static FUSED_RNN_INLINE Vec<T> widened(const E* p, int n) { return Vec<T>::load(p, n); }
  static FUSED_RNN_INLINE void narrow(Vec<T> v, E* p, int n) { v.store(p, n); }
};

// sum + a b, of all elements of the groups.
template <typename T>
FUSED_RNN_INLINE Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> sum) {
  return fma(a, b, sum);
}

// K rounded up to whole groups: the depth of a panel.
template <typename E>
constexpr int64_t depth_of(int64_t K) {
  constexpr int64_t kGroup = Operand<E>::kGroup;
  return (K + kGroup - 1) / kGroup * kGroup;
}
