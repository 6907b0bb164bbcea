// The input products of many steps, as one product.

// The input products of many rows, biases included, kept in the layout of the sums.
template <typename Cell, typename E>
struct InputProducts {
  using T = sum_t<E>;
  using Plan = ForwardPlan<Cell, E>;
  using Packed = typename Plan::Packed;

  // Blocks of a tile of many rows.
  static constexpr int kBlocks = tile_blocks(tile_rows(Cell::kGates), Cell::kGates);
  static_assert(kBlocks == 1 || !Plan::kTilesCall);

  const Plan& plan;
  const E* const* x;  // rows
  T* sums;            // [rows][blocks][G][kLanes]
  const E* panels;    // of the blocks from first_block on
  int64_t first_block = 0;
  bool tiles_call = false;
  CallsAhead calls = {};

  // Of the plan's rows from `first` on.
  InputProducts(const Plan& plan, int64_t first = 0)
      : plan(plan),
        x(plan.ahead_x + first),
        sums(plan.ahead_sums + first * plan.ahead_stride()),
        panels(plan.packed.x) {}

  // Some blocks of units, of which the tail by itself.
  void run(int64_t rows, Range some) {
    const Range whole = plan.without_tail(some);
    for_each_tile<Cell::kGates>(rows, whole, *this);
    if (whole.end == some.end) return;
    with_tail<Cell::kGates>(plan.packed.tail, [&](auto vectors) {
      constexpr int V = vectors;
      TailOfProducts<Cell, E, V> products{*this};
      for_each_tile<V>(rows, Range{plan.blocks - 1, plan.blocks}, products);
    });
  }

  // The same, with the panels of x packed a few blocks at a time, just before they are used, and,
  // where that is done in passing, those of h behind them.
  void pack_and_run(int64_t rows, Range blocks) {
    const Packed& packed = plan.packed;
    const LayerWeights<E>& w = plan.args.weights;
    const SequenceShape& shape = plan.args.shape;
    const int64_t x_panel = Packed::panel(shape.I);
    const int64_t h_panel = Packed::panel(shape.hidden());
    const bool packs_h = plan.packs_in_passing && packed.packs_h;
    tiles_call = plan.packs_in_passing;
    if (plan.x_by_block) panels = plan.x_panels;
    for (Range some = blocks; some.begin < blocks.end; some.begin = some.end) {
      some.end = some.begin + kBlocks < blocks.end ? some.begin + kBlocks : blocks.end;
      first_block = plan.x_by_block ? some.begin : 0;
      for (int64_t i = 0; i < some.size(); ++i) {
        const int64_t block = some.begin + i;
        packed.pack_x(shape, w, block,
                      plan.x_by_block ? plan.x_panels + i * x_panel : packed.x + block * x_panel);
      }
      if (tiles_call) {
        calls.clear();
        if (packs_h) {
          Packed::call_for_weights(calls, w.w_hh, shape.H, shape.hidden(), some.begin);
          calls.add(packed.h + some.begin * h_panel, h_panel);
        }
        if (some.end < blocks.end) {
          Packed::call_for_weights(calls, w.w_ih, shape.H, shape.I, some.end);
          if (!plan.x_by_block) calls.add(packed.x + some.end * x_panel, x_panel);
        }
        calls.divide(tiles_of(rows), kPiecesOfCalls);
      }
      run(rows, some);
      for (int64_t block = some.begin; packs_h && block < some.end; ++block)
        packed.pack_h(shape, w, block);
    }
  }

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    constexpr int kGates = Cell::kGates;
    if constexpr (!exceeds_registers(R, NB, kGates)) {
      if constexpr (NB == 1 && R >= kFewestThatCall && Plan::kTilesCall) {
        if (tiles_call) return calling_gates<R>(row, block);
      }
      gates<R, NB, 0, kGates>(row, block);
    } else {
      [&]<int... P>(Lanes<P...>) __attribute__((always_inline)) {
        (gates<R, NB, P * Packed::kAbreast, Packed::kAbreast>(row, block), ...);
      }(LaneSequence<kGates / Packed::kAbreast>{});
    }
  }

  template <int R>
  __attribute__((noinline)) void calling_gates(int64_t row, int64_t block) {
    gates<R, 1, 0, Cell::kGates, true>(row, block);
  }

  // kCount gates from the first one on: all of them, or a part of the panel.
  template <int R, int NB, int kFirst, int kCount, bool kCalling = false>
  FUSED_RNN_INLINE void gates(int64_t row, int64_t block) {
    using V = Vec<T>;
    constexpr int kLanes = V::kLanes;
    constexpr int kGates = Cell::kGates;
    const int64_t I = plan.args.shape.I;
    V sum[R][NB][kCount];
#pragma GCC unroll 8
    for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
      for (int g = 0; g < kCount; ++g) {
        const V bias = V::load(plan.packed.bias +
                               ((block + b) * Cell::kSums + Cell::XMap::at(kFirst + g)) * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r][b][g] = bias;
      }
    }
    RowsAnywhere<E, R> from;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) from.row[r] = x[row + r];
    const E* const panel = panels + (block - first_block) * Packed::panel(I) +
                           kFirst / Packed::kAbreast * Packed::part(I);
    if constexpr (kCalling) {
      multiply_in_pieces<Gates<kCount>, kPiecesOfCalls>(
          sum, from, I, panel, Packed::kStride, 0, false,
          [&](int) __attribute__((always_inline)) { calls.some(); });
    } else {
      multiply<Gates<kCount>>(sum, from, I, panel, Packed::kStride, Packed::panel(I),
                              Packed::part(I), plan.x_from_memory && !plan.x_by_block);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      T* to = sums + (row + r) * plan.ahead_stride() + (block * kGates + kFirst) * kLanes;
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
        for (int g = 0; g < kCount; ++g) sum[r][b][g].store(to + (b * kGates + g) * kLanes);
      }
    }
  }

 private:
  // The first N gates of a panel, in order.
  template <int N>
  struct Gates : InOrder<N> {
    static constexpr int kAbreast = Packed::kAbreast;
  };
};

// The tiles of a tail of V vectors.
template <typename Cell, typename E, int V>
struct TailOfProducts {
  using T = sum_t<E>;
  using Packed = PackedWeights<Cell, E>;

  const InputProducts<Cell, E>& products;

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    if constexpr (NB == 1) {
      constexpr int kLanes = Vec<T>::kLanes;
      const ForwardPlan<Cell, E>& plan = products.plan;
      const int64_t I = plan.args.shape.I;
      T* const sums = products.sums + row * plan.ahead_stride() + block * Cell::kGates * kLanes;
      for (int g = 0; g < Cell::kGates; ++g) {
        const Vec<T> bias =
            Vec<T>::load(plan.packed.bias + (block * Cell::kSums + Cell::XMap::at(g)) * kLanes);
        for (int r = 0; r < R; ++r) bias.store(sums + r * plan.ahead_stride() + g * kLanes);
      }
      RowsAnywhere<E, R> from;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) from.row[r] = products.x[row + r];
      add_tail<InOrder<Cell::kGates>, V>(
          from, I, products.panels + (block - products.first_block) * Packed::panel(I),
          lanes_of<T>(block, plan.args.shape.H), plan.x_from_memory && !plan.x_by_block, sums,
          plan.ahead_stride());
    }
  }
};

// The same as dot products, from w_ih as it lies, gate by gate: from end to end.
template <typename Cell, typename E>
void input_products_in_place(const ForwardPlan<Cell, E>& plan, int64_t rows, Range blocks) {
  using T = sum_t<E>;
  using V = Vec<T>;
  using Rows = RowsInPlace<E, 1>;
  constexpr int kLanes = V::kLanes;
  const int64_t H = plan.args.shape.H;
  const int64_t I = plan.args.shape.I;
  const int64_t padded = padded_rows<T>(rows);
  for (int64_t i = rows; i < padded; ++i) plan.ahead_x[i] = plan.ahead_x[rows - 1];
  Rows products{{{plan.ahead_x, I, plan.x_from_memory}}, rows};
  for (int g = 0; g < Cell::kGates; ++g) {
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const V bias = V::load(plan.packed.bias + (block * Cell::kSums + Cell::XMap::at(g)) * kLanes);
      T* const sums = plan.ahead_sums + (block * Cell::kGates + g) * kLanes;
      for (int64_t i = 0; i < padded; ++i) bias.store(sums + i * plan.ahead_stride());
      products.add({plan.args.weights.w_ih + (g * H + block * kLanes) * I}, lanes_of<T>(block, H),
                   sums, plan.ahead_stride());
    }
  }
}
