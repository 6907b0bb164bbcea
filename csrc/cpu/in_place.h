// Steps that read the weights where they are, in torch's layout.

// Products of R rows x and kLanes / R rows of weights that follow each other, each summed in a
// register of its own, lane by lane.
template <int R, typename E>
struct DotProducts {
  using Op = Operand<E>;
  using V = Vec<sum_t<E>>;
  static constexpr int kAbreast = V::kLanes / R;
  // The rows of weights that are read together, and how many vectors of each on end where they do
  // not come in turns. With AVX-512 single rows come faster from L2 that way (LSTMCell H = 128 7.3
  // us and 6.0, H = 512 98 and 83); with AVX2 H = 512 takes 94 us and 102.
  static constexpr int kRead = kAbreast < 8 ? kAbreast : 8;
  static constexpr int kRun = R == 1 && sizeof(V) == 64 ? 4 : 1;

  V sum[V::kLanes];

  FUSED_RNN_INLINE DotProducts() {
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) sum[i] = V::zero();
  }

  // sum[r][j] += w[j] x[r] for the first n rows of w; K long. In turns (tile.h) where weights are
  // read at every step of a sequence, forth and back (H = 512, T = 25 1310 us and 1240), or by rows
  // that share a load (LSTMCell H = 128, B = 8 15.0 and 13.4, H = 512, B = 8 200 and 175; AVX2 26.2
  // and 23.1, 367 and 322); of one row, one step, it is as fast or up to 10 % slower. kCalls: for
  // the rows of w that come next, of weights from memory. Those of four x are read only four
  // abreast, too few for the processor to fetch them in time (LSTMCell, B = 4, H = 768 405 us and
  // 346, H = 1024 1210 and 980, H = 1536 3680 and 2980; B = 2, eight abreast, 0 to 15 % slower, H
  // = 512, in L3, 5 %).
  template <bool kInTurns = (R > 1), bool kCalls = false>
  FUSED_RNN_INLINE void add(const E* w, int n, const E* const* x, int64_t K) {
#pragma GCC unroll 16
    for (int first = 0; first < kAbreast; first += kRead) {
      const E* rows[kRead];
#pragma GCC unroll 16
      for (int j = 0; j < kRead; ++j) rows[j] = w + (first + j < n ? first + j : 0) * K;
      int64_t k = 0;
      if constexpr (kInTurns) {
        InTurns<Op::kElements> turns(K);
        for (; turns.has_pair(); turns.next()) {
          add_at<1, kCalls>(first, rows, x, turns.first(), Op::kElements, K);
          add_at<1, kCalls>(first, rows, x, turns.second(), Op::kElements, K);
        }
        k = turns.end();
      } else {
        for (; k + kRun * Op::kElements <= K; k += kRun * Op::kElements)
          add_at<kRun, kCalls>(first, rows, x, k, Op::kElements, K);
      }
      for (; k + Op::kElements <= K; k += Op::kElements)
        add_at<1, kCalls>(first, rows, x, k, Op::kElements, K);
      if (k < K) add_at<1, kCalls>(first, rows, x, k, static_cast<int>(K - k), K);
    }
  }

  // The next kVectors vectors of kRead rows of w, which are K long, each of so many elements.
  template <int kVectors, bool kCalls>
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
    for (int j = 0; j < kRead; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const E* const at = rows[j] + k + v * Op::kElements;
        const typename Op::V weights = Op::load(at, count);
        if constexpr (kCalls) __builtin_prefetch(at + kRead * K);
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

// A step of up to kRowsInPlaceWide rows with the weights in torch's layout, block of units by
// block. Rows pass by each gate's weights of a block while those are in cache, several at a time
// for each load of a weight; as many as fill vectors become the lanes of products.
template <typename Cell, typename E>
struct InPlace {
  using T = sum_t<E>;
  using V = Vec<T>;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kRows = kLanes < 4 ? kLanes : 4;  // that share a load
  static constexpr int kMost = kRowsInPlaceWide;
  static_assert(kMost % kRows == 0);
  // Rows that are worth the transpositions: two vectors of them (AVX2, H = 512: B = 16 LSTM 1.20 ms
  // by dot products and 0.99, GRU 0.81 and 0.63; B = 8 LSTM 0.55 and 0.62), or one of 16 lanes (H =
  // 512, B = 16 LSTM 0.38 and 0.35, GRU 0.29 and 0.27, H = 1024 2.44 and 1.90),
  static constexpr int kFewestLanes = kLanes == 16 ? 16 : 2 * kLanes;
  // where they fill wide vectors by four fifths (AVX-512, LSTM H = 512: B = 20 0.46 and 0.60, B =
  // 24 0.56 and 0.59, B = 28 0.65 and 0.60).
  static bool fill_lanes(int64_t rows) {
    return rows >= kFewestLanes && (kLanes < 8 || 5 * rows >= 4 * kLanes * blocks_of<T>(rows));
  }
  using ByLanes = ProductsAsLanes<E, kMost>;
  static constexpr int64_t kStride = Cell::kSums * kLanes;

  ForwardStep<Cell, E>& step;
  const LayerWeights<E>& w = step.plan.args.weights;
  int64_t H = step.plan.args.shape.H;
  int64_t I = step.plan.args.shape.I;
  int64_t O = step.plan.args.shape.hidden();

  void run() {
    const int64_t rows = step.count;
    const Range blocks = step.blocks;
    const auto at = [&](int64_t i) { return step.back ? blocks.end - 1 - i : blocks.begin + i; };
    if (rows == 1) {
      for (int64_t i = 0; i < blocks.size(); ++i)
        step.plan.ahead ? one_row<true>(at(i)) : one_row<false>(at(i));
      return;
    }
    // Up to whole kRows: the last row again, whose sums then are nobody's.
    const int64_t padded = (rows + kRows - 1) / kRows * kRows;
    const E* x[kMost];
    const E* h[kMost];
    for (int64_t i = 0; i < padded; ++i) {
      const ForwardRow<E>& row = step.rows[i < rows ? i : rows - 1];
      x[i] = row.x;
      h[i] = row.h_prev;
    }
    const bool lanes = fill_lanes(rows);
    if (lanes) {
      ByLanes::pack(x, rows, I, step.plan.x_lanes);
      ByLanes::pack(h, rows, O, step.plan.h_lanes);
    }
    for (int64_t j = 0; j < blocks.size(); ++j) {
      const int64_t block = at(j);
      alignas(64) T sums[kMost * kStride];
      for (int64_t i = 0; i < padded; ++i)
        __builtin_memcpy(sums + i * kStride, step.plan.packed.bias + block * kStride,
                         kStride * sizeof(T));
      if (lanes) {
        by_lanes(block, rows, sums);
      } else {
        dot_products(block, rows, x, h, sums);
      }
      finish_stored<Cell::kSums>(step, 0, block, static_cast<int>(rows), 1, static_cast<T*>(sums));
    }
  }

  // Its sums stay in registers.
  template <bool kAhead>
  void one_row(int64_t block) {
    const ForwardRow<E>& at = step.rows[0];
    const int64_t unit = block * kLanes;
    const int n = lanes_of<T>(block, H);
    V sum[Cell::kSums];
#pragma GCC unroll 8
    for (int s = 0; s < Cell::kSums; ++s)
      sum[s] = V::load(step.plan.packed.bias + block * kStride + s * kLanes);
    for (int g = 0; g < kGates; ++g) {
      V& x_sum = sum[Cell::XMap::at(g)];
      V& h_sum = sum[Cell::HMap::at(g)];
      DotProducts<1, E> products;
      if constexpr (kAhead) {
        x_sum = V::load(at.ahead + (block * kGates + g) * kLanes);
      } else {
        products.add(w.w_ih + (g * H + unit) * I, n, &at.x, I);
        if (Cell::XMap::at(g) != Cell::HMap::at(g)) {
          x_sum = x_sum + products.total();
          products = {};
        }
      }
      products.template add<kAhead>(w.w_hh + (g * H + unit) * O, n, &at.h_prev, O);
      h_sum = h_sum + products.total();
    }
    step.activate(sum);
    step.finish(0, block, sum);
  }

  // Several rows never have their input products ahead: of more than a few steps they are not read
  // in place. Those that are left of fours share loads as well, and three of them may go as four,
  // the last one twice (LSTMCell, us: 16 lanes, H = 512, B = 2 121 and 92, B = 3 168 and 98, B = 7
  // 213 and 163; 8 lanes, B = 2 130 and 113, B = 3 171 and 149, as four 187, B = 6 263 and 275;
  // float64 with AVX-512, H = 256, B = 2 54 and 46, B = 7 as eight 98 and 110; AVX2, H = 1024, from
  // memory, B = 3 one by one 1250, as four 770).
  void dot_products(int64_t block, int64_t count, const E* const* x, const E* const* h, T* sums) {
    const int64_t unit = block * kLanes;
    const int n = lanes_of<T>(block, H);
    const bool pairs = kLanes == 16 || count < kRows;
    const bool three_as_four = kLanes == 16 || step.plan.h_from_memory;
    for (int g = 0; g < kGates; ++g) {
      int64_t i = 0;
      while (i < count) {
        const int64_t left = count - i;
        if (left >= kRows || (left == 3 && three_as_four)) {
          gate<kRows>(g, unit, n, x + i, h + i, sums + i * kStride);
          i += kRows;
        } else if (left >= 2 && pairs) {
          gate<2>(g, unit, n, x + i, h + i, sums + i * kStride);
          i += 2;
        } else {
          gate<1>(g, unit, n, x + i, h + i, sums + i * kStride);
          i += 1;
        }
      }
    }
  }

  void by_lanes(int64_t block, int64_t count, T* sums) {
    ByLanes products(lanes_of<T>(block, H), count);
    const auto add_to = [&](int sum) {
      products.each_row([&](int64_t row, V values) __attribute__((always_inline)) {
        T* const at = sums + row * kStride + sum * kLanes;
        (V::load(at) + values).store(at);
      });
    };
    for (int g = 0; g < kGates; ++g) {
      const int64_t unit = g * H + block * kLanes;
      const bool apart = Cell::XMap::at(g) != Cell::HMap::at(g);
      products.multiply(w.w_ih + unit * I, I, step.plan.x_lanes, false);
      if (apart) add_to(Cell::XMap::at(g));
      products.multiply(w.w_hh + unit * O, O, step.plan.h_lanes, !apart);
      add_to(Cell::HMap::at(g));
    }
  }

  // The sums of a gate for R rows and a block of units.
  template <int R>
  void gate(int g, int64_t unit, int n, const E* const* x, const E* const* h, T* sums) {
    T* const x_sums = sums + Cell::XMap::at(g) * kLanes;
    T* const h_sums = sums + Cell::HMap::at(g) * kLanes;
    constexpr int kAbreast = DotProducts<R, E>::kAbreast;
    for (int first = 0; first < n; first += kAbreast) {
      const int64_t row = g * H + unit + first;
      DotProducts<R, E> products;
      multiply<R>(products, w.w_ih + row * I, n - first, x, I, step.plan.x_from_memory);
      if (x_sums != h_sums) {
        add<R>(products.total(), x_sums + first);
        products = {};
      }
      multiply<R>(products, w.w_hh + row * O, n - first, h, O, step.plan.h_from_memory);
      add<R>(products.total(), h_sums + first);
    }
  }

  template <int R>
  static FUSED_RNN_INLINE void multiply(DotProducts<R, E>& products, const E* w, int n,
                                        const E* const* x, int64_t K, bool from_memory) {
    if constexpr (R == kRows) {
      if (from_memory) return products.template add<true, true>(w, n, x, K);
    }
    products.add(w, n, x, K);
  }

  // sums[r][j] += the lane of row r and unit j
  template <int R>
  static FUSED_RNN_INLINE void add(V products, T* sums) {
    constexpr int kAbreast = DotProducts<R, E>::kAbreast;
    using Units
        [[gnu::vector_size(kAbreast * sizeof(T)), gnu::aligned(sizeof(T)), gnu::may_alias]] = T;
    alignas(64) T lanes[kLanes];
    products.store(lanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Units* const at = reinterpret_cast<Units*>(sums + r * kStride);
      *at += *reinterpret_cast<const Units*>(lanes + r * kAbreast);
    }
  }
};
