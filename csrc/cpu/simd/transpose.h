// Transposition of a strip of rows: how weights in torch's layout become panels.

#if defined(__clang__)
#define FUSED_RNN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif

// {a0, b0, a1, b1, ...} of the lower (kHigh = false) or upper halves of a and b.
template <bool kHigh, typename T, int... I>
FUSED_RNN_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b, Lanes<I...>) {
  constexpr int kBase = kHigh ? static_cast<int>(sizeof...(I)) / 2 : 0;
  constexpr int kLanes = static_cast<int>(sizeof...(I));
#if defined(__clang__)
  return {FUSED_RNN_SHUFFLE(a.v, b.v, (kBase + I / 2 + (I % 2) * kLanes)...)};
#else
  using Integer = typename Vec<T>::Integer;
  return {__builtin_shuffle(a.v, b.v, Integer{(kBase + I / 2 + (I % 2) * kLanes)...})};
#endif
}

// A square of kLanes x kLanes in registers: log2(kLanes) rounds of interleaving row i with row
// i + kLanes / 2.
template <typename T, int kRound = 1>
FUSED_RNN_INLINE void transpose_square(Vec<T> (&rows)[Vec<T>::kLanes]) {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> next[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes / 2; ++i) {
    next[2 * i] = interleave<false>(rows[i], rows[i + kLanes / 2], LaneSequence<kLanes>{});
    next[2 * i + 1] = interleave<true>(rows[i], rows[i + kLanes / 2], LaneSequence<kLanes>{});
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  if constexpr (kRound * 2 < kLanes) transpose_square<T, kRound * 2>(rows);
}

// to[k * stride + j] = rows[j][k] for j < n <= kLanes, k < K, and zeros for n <= j < kLanes. rows
// and to do not overlap.
template <typename T>
void transpose_strip(const T* const* rows, int n, int64_t K, T* to, int64_t stride) {
  constexpr int kLanes = Vec<T>::kLanes;
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) {
    Vec<T> square[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) square[j] = j < n ? Vec<T>::load(rows[j] + k) : Vec<T>::zero();
    transpose_square<T>(square);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) square[j].store(to + (k + j) * stride);
  }
  for (; k < K; ++k) {
    for (int j = 0; j < kLanes; ++j) to[k * stride + j] = j < n ? rows[j][k] : T(0);
  }
}

#undef FUSED_RNN_SHUFFLE
