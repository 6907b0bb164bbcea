// Products with the weights as they lie, in torch's layout: of rows of both, along k. What the
// choices here were measured to give is in csrc/DECISIONS.md, "Weights read in place".

// Products of R rows x and kLanes / R rows of weights that follow each other, each summed in a
// register of its own, lane by lane.
template <int R, typename E>
struct DotProducts {
  using Op = Operand<E>;
  using V = Vec<sum_t<E>>;
  static constexpr int kAbreast = V::kLanes / R;
  // The rows of weights that are read together, and how many vectors (kRun) of each on end where
  // they do not come in turns: with AVX-512 single rows come faster from L2 that way.
  static constexpr int kRead = kAbreast < 8 ? kAbreast : 8;
  // Of single rows from L3, step after step, so many.
  static constexpr int kReadFromL3 = kRead < 4 || sizeof(V) < 64 ? kRead : 4;
  static constexpr int kRun = R == 1 && sizeof(V) == 64 ? 4 : 1;

  V sum[V::kLanes];

  FUSED_RNN_INLINE DotProducts() {
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) sum[i] = V::zero();
  }

  // sum[r][j] += w[j] x[r] for the first n rows of w; K long. In turns (tile.h) where weights are
  // read at every step of a sequence, forth and back, or by rows that share a load. kRowsOfW rows
  // of w are read together. kCalls: for the rows of w that come next, of weights from memory; those
  // of four x are read only four abreast, too few for the processor to fetch them in time.
  template <bool kInTurns = (R > 1), bool kCalls = false, int kRowsOfW = kRead>
  FUSED_RNN_INLINE void add(const E* w, int n, const E* const* x, int64_t K) {
#pragma GCC unroll 16
    for (int first = 0; first < kAbreast; first += kRowsOfW) {
      const E* rows[kRowsOfW];
#pragma GCC unroll 16
      for (int j = 0; j < kRowsOfW; ++j) rows[j] = w + (first + j < n ? first + j : 0) * K;
      int64_t k = 0;
      if constexpr (kInTurns) {
        InTurns<Op::kElements> turns(K);
        for (; turns.has_pair(); turns.next()) {
          add_at<kRowsOfW, 1, kCalls>(first, rows, x, turns.first(), Op::kElements, K);
          add_at<kRowsOfW, 1, kCalls>(first, rows, x, turns.second(), Op::kElements, K);
        }
        k = turns.end();
      } else {
        for (; k + kRun * Op::kElements <= K; k += kRun * Op::kElements)
          add_at<kRowsOfW, kRun, kCalls>(first, rows, x, k, Op::kElements, K);
      }
      for (; k + Op::kElements <= K; k += Op::kElements)
        add_at<kRowsOfW, 1, kCalls>(first, rows, x, k, Op::kElements, K);
      if (k < K) add_at<kRowsOfW, 1, kCalls>(first, rows, x, k, static_cast<int>(K - k), K);
    }
  }

  // The next kVectors vectors of kRowsOfW rows of w, which are K long, each of `count` elements.
  template <int kRowsOfW, int kVectors, bool kCalls>
  FUSED_RNN_INLINE void add_at(int first, const E* const* rows, const E* const* x, int64_t k,
                               int count, int64_t K) {
    typename Op::V value[R][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v)
        value[r][v] = Op::load(x[r] + k + v * Op::kElements, count);
    }
#pragma GCC unroll 16
    for (int j = 0; j < kRowsOfW; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const E* const at = rows[j] + k + v * Op::kElements;
        const typename Op::V weights = Op::load(at, count);
        if constexpr (kCalls) __builtin_prefetch(at + kRowsOfW * K);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          V& to = sum[r * kAbreast + first + j];
          to = multiply_add(value[r][v], weights, to);
        }
      }
    }
  }

  // w[j] . x[r] in lane r * kAbreast + j.
  FUSED_RNN_INLINE V total() { return sum_lanes(sum); }
};

// So many rows share each load of a weight.
template <typename T>
constexpr int kRowsOfALoad = Vec<T>::kLanes < 4 ? Vec<T>::kLanes : 4;

// How many rows there must be of x, and of sums, for so many: the last one again, whose sums then
// are nobody's.
template <typename T>
constexpr int64_t padded_rows(int64_t rows) {
  return (rows + kRowsOfALoad<T> - 1) / kRowsOfALoad<T> * kRowsOfALoad<T>;
}

// One operand of products that are summed: rows of x, K long, and whether its weights come from
// memory.
template <typename E>
struct RowsOfOperand {
  const E* const* x;
  int64_t K;
  bool from_memory;
};

// Products of rows with the weights of kLanes units, of one operand or of two that add up. Rows
// pass by a few of the weights' rows, forth and back in turn: of what L1 cannot hold it then has
// the last when that comes first, and each weight is read from beyond L1 once.
template <typename E, int kOperands>
struct RowsInPlace {
  using T = sum_t<E>;
  static constexpr int kLanes = Vec<T>::kLanes;
  static constexpr int kRows = kRowsOfALoad<T>;

  RowsOfOperand<E> operands[kOperands];  // padded_rows each
  int64_t rows;
  bool back = false;

  // to[i * stride + j] += sum over operands of w[j] . x[i], for n <= kLanes rows of w that follow
  // each other.
  //
  // Rows that are left of fours share loads as well, and three of them may go as four, the last one
  // twice, where that is faster: with 16 lanes, or of weights from memory.
  void add(const E* const (&w)[kOperands], int n, T* to, int64_t stride) {
    constexpr int kAbreast = DotProducts<kRows, E>::kAbreast;
    const bool pairs = kLanes == 16 || rows < kRows;
    const bool three_as_four = kLanes == 16 || operands[kOperands - 1].from_memory;
    const int64_t fours = rows / kRows + (rows % kRows == 3 && three_as_four ? 1 : 0);
    for (int first = 0; fours > 0 && first < n; first += kAbreast) {
      for (int64_t i = 0; i < fours; ++i)
        some<kRows>(w, first, n, (back ? fours - 1 - i : i) * kRows, to, stride, i == 0);
      back = !back;
    }
    for (int64_t row = fours * kRows; row < rows;) {
      if (rows - row >= 2 && pairs) {
        for (int first = 0; first < n; first += DotProducts<2, E>::kAbreast)
          some<2>(w, first, n, row, to, stride, false);
        row += 2;
      } else {
        some<1>(w, 0, n, row, to, stride, false);
        row += 1;
      }
    }
  }

 private:
  // Those of R rows from `row` on and as many of w as make a vector of sums.
  template <int R>
  FUSED_RNN_INLINE void some(const E* const (&w)[kOperands], int first, int n, int64_t row, T* to,
                             int64_t stride, bool calls) const {
    constexpr int kAbreast = DotProducts<R, E>::kAbreast;
    using Units
        [[gnu::vector_size(kAbreast * sizeof(T)), gnu::aligned(sizeof(T)), gnu::may_alias]] = T;
    DotProducts<R, E> products;
#pragma GCC unroll 2
    for (int i = 0; i < kOperands; ++i) {
      const RowsOfOperand<E>& from = operands[i];
      const E* const weights = w[i] + first * from.K;
      if constexpr (R == kRows) {
        if (calls && from.from_memory) {
          products.template add<true, true>(weights, n - first, from.x + row, from.K);
          continue;
        }
      }
      products.add(weights, n - first, from.x + row, from.K);
    }
    alignas(64) T lanes[kLanes];
    products.total().store(lanes);
    to += row * stride + first;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Units* const at = reinterpret_cast<Units*>(to + r * stride);
      *at += *reinterpret_cast<const Units*>(lanes + r * kAbreast);
    }
  }
};
