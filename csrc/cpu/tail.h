// The last units of a layer whose H is no multiple of the lanes. Gate by gate they would fill a
// part of a vector each; side by side, the units of one gate behind those of the one before, they
// fill fewer vectors: with 16 lanes, the 4 x 4 of an LSTM of H = 100 one instead of four. Their
// sums are spread to a vector for each gate after the products.

// Vectors of such a tail of a layer that is packed for calls of `rows` rows or more; 0 where there
// is none or where it would not pay. Spreading the sums costs as much as the products of some
// vectors: of a 32nd of all (AVX-512, float, gate by gate and as a tail, us: LSTM T = 35, B = 20, H
// = 100 548 and 505; B = 16, T = 50, H = 200, a 26th 2217 and 2177; T = 20, B = 32, H = 300, a 76th
// 3804 and 3857; more of them in csrc/DECISIONS.md), and more latency than it saves where all units
// are one block, or two blocks and one row (T = 50: B = 64, H = 10 126 and 137; H = 20, B = 1 7.8
// and 8.5, B = 2 12.6 and 12.1, B = 32 113 and 100). Other types were not timed.
template <typename T>
constexpr int tail_vectors(int gates, int64_t H, int64_t rows) {
  constexpr int kLanes = Vec<T>::kLanes;
  const int64_t blocks = blocks_of<T>(H);
  const int vectors = (gates * static_cast<int>(H % kLanes) + kLanes - 1) / kLanes;
  const bool pays = 32 * (gates - vectors) >= gates * blocks && blocks > (rows > 1 ? 1 : 2);
  return vectors <= vectors_abreast(gates) && pays ? vectors : 0;
}

// Calls f with the number of vectors, as many as tail_vectors can give, as a constant.
template <int kGates, int V = 1, typename F>
FUSED_RNN_INLINE void with_tail(int vectors, const F& f) {
  if constexpr (V < kGates && V <= vectors_abreast(kGates)) {
    if (vectors == V) return f(std::integral_constant<int, V>{});
    with_tail<kGates, V + 1>(vectors, f);
  }
}

// to[k][g * units + j] = w[g * H + H - units + j][k], zeros past the last gate and K, in so many
// vectors. notice gets all of it.
template <typename E, typename Notice>
void pack_tail(const E* w, int gates, int64_t H, int64_t K, int vectors, E* to, Notice&& notice) {
  constexpr int kLanes = Vec<sum_t<E>>::kLanes;
  constexpr int kElements = Operand<E>::kElements;
  const int units = static_cast<int>(H % kLanes);
  for (int v = 0; v < vectors; ++v) {
    const E* rows[kLanes] = {};
    int n = 0;
    for (; n < kLanes && v * kLanes + n < gates * units; ++n) {
      const int lane = v * kLanes + n;
      rows[n] = w + (lane / units * H + H - units + lane % units) * K;
    }
    transpose_strip(rows, n, K, to + v * kElements, vectors * kElements, notice);
  }
}

// The products of R rows with a tail of V vectors, added gate by gate:
//   to[r][Map::at(g)][j] += sum over k of a[r][k] * panel[k][g * units + j]
// Lanes past the last unit get what the next gate's units do, or zeros; they are never stored in h.
// Rows of `to` are `stride` apart.
template <typename Map, int V, typename E, int R>
FUSED_RNN_INLINE void add_tail(const RowsAnywhere<E, R>& a, int64_t K, const E* panel, int units,
                               bool from_memory, sum_t<E>* to, int64_t stride) {
  using T = sum_t<E>;
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> sum[R][1][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][0][v] = Vec<T>::zero();
  }
  multiply<InOrder<V>>(sum, a, K, panel, V * Operand<E>::kElements, 0, 0, from_memory);
  // The last gate's vector begins in what the products fill, and ends past it.
  alignas(64) T side_by_side[R][(V + 1) * kLanes];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[r][0][v].store(side_by_side[r] + v * kLanes);
    Vec<T>::zero().store(side_by_side[r] + V * kLanes);
  }
  for (int r = 0; r < R; ++r) {
    for (int g = 0; g < Map::kVectors; ++g) {
      T* const at = to + r * stride + Map::at(g) * kLanes;
      (Vec<T>::load(at) + Vec<T>::load(side_by_side[r] + g * units)).store(at);
    }
  }
}
