// Shuffles: the transposition of a strip of rows, which is how weights in torch's layout become
// panels, and sums of lanes.

// In each lane the one of a and b, b's lanes counted on from a's, that Source gives for it.
template <typename Source, typename T, int... I>
FUSED_RNN_INLINE Vec<T> pick(Vec<T> a, Vec<T> b, Source, Lanes<I...>) {
#if defined(__clang__)
  return {__builtin_shufflevector(a.v, b.v, Source{}(I)...)};
#else
  using Integer = typename Vec<T>::Integer;
  return {__builtin_shuffle(a.v, b.v, Integer{Source{}(I)...})};
#endif
}

// {a0, b0, a1, b1, ...} of the lower (kHigh = false) or upper halves of a and b.
template <bool kHigh, typename T>
FUSED_RNN_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b) {
  constexpr int kLanes = Vec<T>::kLanes;
  const auto source = [](int lane) {
    return (kHigh ? kLanes / 2 : 0) + lane / 2 + lane % 2 * kLanes;
  };
  return pick(a, b, source, LaneSequence<kLanes>{});
}

// A square of kLanes x kLanes in registers: log2(kLanes) rounds of interleaving row i with row
// i + kLanes / 2.
template <typename T, int kRound = 1>
FUSED_RNN_INLINE void transpose_square(Vec<T> (&rows)[Vec<T>::kLanes]) {
  constexpr int kLanes = Vec<T>::kLanes;
  Vec<T> next[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes / 2; ++i) {
    next[2 * i] = interleave<false>(rows[i], rows[i + kLanes / 2]);
    next[2 * i + 1] = interleave<true>(rows[i], rows[i + kLanes / 2]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  if constexpr (kRound * 2 < kLanes) transpose_square<T, kRound * 2>(rows);
}

// Every other chunk of kChunk lanes, the first or the second of each two, of a and then of b,
// within each kGroup lanes.
template <bool kSecond, int kChunk, int kGroup, typename T>
FUSED_RNN_INLINE Vec<T> every_other(Vec<T> a, Vec<T> b) {
  constexpr int kLanes = Vec<T>::kLanes;
  constexpr int kHalf = kGroup / 2;  // from a
  const auto source = [](int lane) {
    const int from = lane % kHalf;
    return lane / kGroup * kGroup + (2 * (from / kChunk) + kSecond) * kChunk + from % kChunk +
           lane % kGroup / kHalf * kLanes;
  };
  return pick(a, b, source, LaneSequence<kLanes>{});
}

// Halves kRows rows until one is left: sums of neighbouring lanes of each two, first of those
// within 16 bytes, which shuffles take little time to cross, then of those 16 bytes.
template <int kRows, typename T>
FUSED_RNN_INLINE void add_neighbours(Vec<T>* rows) {
  if constexpr (kRows > 1) {
    constexpr int kLanes = Vec<T>::kLanes;
    constexpr int kNear = 16 / sizeof(T) < kLanes ? 16 / sizeof(T) : kLanes;
    constexpr bool kWithin = kRows * kNear > kLanes;
    constexpr int kChunk = kWithin ? 1 : kNear;
    constexpr int kGroup = kWithin ? kNear : kLanes;
#pragma GCC unroll 8
    for (int i = 0; i < kRows / 2; ++i) {
      const Vec<T> a = rows[2 * i], b = rows[2 * i + 1];
      rows[i] = every_other<false, kChunk, kGroup>(a, b) + every_other<true, kChunk, kGroup>(a, b);
    }
    add_neighbours<kRows / 2>(rows);
  }
}

// The sum of all lanes of rows[i] in lane i.
template <typename T>
FUSED_RNN_INLINE Vec<T> sum_lanes(Vec<T> (&rows)[Vec<T>::kLanes]) {
  add_neighbours<Vec<T>::kLanes>(&rows[0]);
  return rows[0];
}

// Takes no notice of what passes by.
struct NoNotice {
  template <typename Operands>
  FUSED_RNN_INLINE void operator()(int, const Operands&) const {}
};

// Groups of elements of n <= kLanes rows side by side: to[k * stride + j] = rows[j][k] for groups
// k, zeros for n <= j < kLanes and past the K-th element of a row; stride in elements. rows and to
// do not overlap. notice(j, operands) gets all of it, a vector of row j or, at the ends of rows, of
// all of them at a time.
template <typename E, typename Notice = NoNotice>
void transpose_strip(const E* const* rows, int n, int64_t K, E* to, int64_t stride,
                     Notice&& notice = {}) {
  using Op = Operand<E>;
  using V = Vec<sum_t<E>>;
  constexpr int kLanes = V::kLanes;
  constexpr int kGroup = Op::kGroup;
  int64_t k = 0;
  for (; k + kLanes * kGroup <= K; k += kLanes * kGroup) {
    V square[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) square[j] = V::zero();
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) {
      if (j < n) {
        __builtin_memcpy(&square[j].v, rows[j] + k, sizeof(V));
        notice(j, Op::load(rows[j] + k));
      }
    }
    transpose_square(square);
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j)
      __builtin_memcpy(to + (k / kGroup + j) * stride, &square[j].v, sizeof(V));
  }
  for (; k < K; k += kGroup) {
    E* const group = to + k / kGroup * stride;
    for (int j = 0; j < kLanes; ++j) {
      for (int e = 0; e < kGroup; ++e)
        group[j * kGroup + e] = j < n && k + e < K ? rows[j][k + e] : E{};
    }
    notice(0, Op::load(group));
  }
}
