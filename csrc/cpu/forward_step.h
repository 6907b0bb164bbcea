// A step of the forward pass: tiles of rows x units, and the cells of their sums.

template <typename Cell, typename E, int R>
struct SumsOfFewRows;
template <typename Cell, typename E, int V>
struct TailOfStep;
template <typename Cell, typename E, int V>
struct TailOfProducts;

// A thread's part of a step: rows x blocks of units.
template <typename Cell, typename E>
struct ForwardStep {
  using T = sum_t<E>;
  using Plan = ForwardPlan<Cell, E>;
  using Packed = typename Plan::Packed;

  // Of all steps:
  const Plan& plan;
  const ForwardRow<E>* rows;
  Range blocks;
  int64_t I;              // 0 where the input products are ahead
  int64_t lines_a_block;  // cache lines of the next step's x that a block of units calls for
  // Of this one:
  int64_t count = 0;        // of rows
  bool back = false;        // the blocks come in falling order
  bool h_is_zeros = false;  // h_prev is
  bool from_zeros = false;  // it is known that w_hh makes zeros of them
  bool packs = false;       // the panels of its blocks, as it comes to them
  CallsAhead calls = {};    // what the tiles of a block call for, where they do

  ForwardStep(const Plan& plan, Range blocks)
      : plan(plan), rows(plan.rows), blocks(blocks), I(plan.ahead ? 0 : plan.args.shape.I) {
    const int64_t lines = (I * static_cast<int64_t>(sizeof(E)) + kCacheLine - 1) / kCacheLine;
    lines_a_block = blocks.size() > 0 ? (lines + blocks.size() - 1) / blocks.size() : 0;
  }

  // Each block of units calls for a part of the next step's x, so that it is there in time.
  // Everything else that a step reads has been in cache before, or follows in memory.
  template <int R, int NB>
  FUSED_RNN_INLINE void call_for_input(int64_t row, int64_t block) const {
    constexpr int64_t kLine = kCacheLine / static_cast<int64_t>(sizeof(E));
    const int64_t first = (block - blocks.begin) * lines_a_block * kLine;
    const int64_t last = first + NB * lines_a_block * kLine;
    for (int64_t i = first; i < last && i < I; i += kLine) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) __builtin_prefetch(rows[row + r].x_next + i);
    }
  }

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    constexpr int kSums = Cell::kSums;
    if constexpr (R > 1) call_for_input<R, NB>(row, block);
    if constexpr (exceeds_registers(R, NB, kSums)) {
      static_assert(NB == 1);
      tile_in_parts<R>(row, block);
    } else {
      if constexpr (NB == 1 && R >= kFewestThatCall && Plan::kTilesCall) {
        if (packs || calls_for_panel(block)) return calling_tile<R>(row, block);
      }
      whole_tile<R, NB>(row, block);
    }
  }

  void run() {
    if constexpr (Plan::kTilesCall) {
      if (packs) return pack_and_run();
    }
    if (count == 1) return plan.near ? few_rows<1, true>() : few_rows<1, false>();
    if constexpr (2 * tile_blocks(2, Cell::kSums) <= kFinishedInRegisters) {
      if (count == 2) return few_rows<2, false>();
    }
    tiles(blocks);
  }

  // All rows, some blocks of units, of which the tail by itself.
  void tiles(Range some) {
    const Range whole = plan.without_tail(some);
    const bool tail = whole.end < some.end;
    if (tail && back) tiles_of_tail();
    for_each_tile<Cell::kSums, Cell::kGates>(count, whole, *this, back);
    if (tail && !back) tiles_of_tail();
  }

  void tiles_of_tail() {
    with_tail<Cell::kGates>(plan.packed.tail, [&](auto vectors) {
      constexpr int V = vectors;
      TailOfStep<Cell, E, V> tail{*this};
      for_each_tile<V>(count, Range{plan.blocks - 1, plan.blocks}, tail);
    });
  }

  // The sums of R rows and a tail of V vectors, `stride` apart.
  template <int R, int V>
  FUSED_RNN_INLINE void sums_of_tail(int64_t row, T* sums, int64_t stride) const {
    constexpr int kLanes = Vec<T>::kLanes;
    const int64_t block = plan.blocks - 1;
    const int units = lanes_of<T>(block, plan.args.shape.H);
    for (int r = 0; r < R; ++r) {
      for (int s = 0; s < Cell::kSums; ++s)
        begin(row + r, block, s).store(sums + r * stride + s * kLanes);
    }
    if (I > 0) {
      add_tail<typename Cell::XMap, V>(rows_of<R>(row, &ForwardRow<E>::x), I,
                                       plan.packed.x + block * Packed::panel(x_size()), units,
                                       plan.x_from_memory, sums, stride);
    }
    if (from_zeros) return;
    add_tail<typename Cell::HMap, V>(rows_of<R>(row, &ForwardRow<E>::h_prev), h_size(),
                                     plan.packed.h + block * Packed::panel(h_size()), units,
                                     plan.h_from_memory, sums, stride);
  }

  // The first step, if panels are packed in passing and it is what uses them first.
  void pack_and_run() {
    static_assert(2 * Cell::kGates + 2 <= CallsAhead::kMost);
    static_assert(tile_rows(Cell::kGates) == kTileRows);
    const Packed& packed = plan.packed;
    const LayerWeights<E>& w = plan.args.weights;
    const SequenceShape& shape = plan.args.shape;
    const bool first_h_is_zeros = from_zeros;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      packed.pack_x(shape, w, block, packed.x + block * Packed::panel(x_size()));
      packed.pack_h(shape, w, block);
      from_zeros = first_h_is_zeros && packed.zeros_stay({block, block + 1});
      calls.clear();
      if (block + 1 < blocks.end) {
        Packed::call_for_weights(calls, w.w_ih, shape.H, x_size(), block + 1);
        Packed::call_for_weights(calls, w.w_hh, shape.H, h_size(), block + 1);
        calls.add(packed.x + (block + 1) * Packed::panel(x_size()), Packed::panel(x_size()));
        calls.add(packed.h + (block + 1) * Packed::panel(h_size()), Packed::panel(h_size()));
      }
      calls.divide(tiles_of(count), pieces());
      tiles({block, block + 1});
    }
  }

  // A step of R rows: the sums of several blocks, then their cells together.
  template <int R, bool kNear>
  void few_rows() {
    if (R * blocks.size() <= kFinishedInRegisters && plan.without_tail(blocks).end == blocks.end)
      return for_each_tile<Cell::kSums, Cell::kGates>(R, blocks, *this, back);
    constexpr int64_t kMost = kTogether / R;
    for (Range left = blocks; left.size() > 0;) {
      // The same blocks together both ways, as in for_each_tile.
      const int64_t rest = left.size() % kMost;
      const int64_t some = rest > 0 && (back || left.size() < kMost) ? rest : kMost;
      const int64_t first = back ? left.end - some : left.begin;
      alignas(64) T stored[kTogether * Cell::kSums * Vec<T>::kLanes];
      SumsOfFewRows<Cell, E, R> sums{*this, first, some, stored};
      const Range whole = plan.without_tail({first, first + some});
      if (whole.size() < some) sums.tail();
      if constexpr (kNear) {
        for (int64_t i = 0; i < whole.size(); ++i)
          sums.template tile<R, 1>(0, back ? whole.end - 1 - i : whole.begin + i);
      } else {
        for_each_tile<Cell::kSums, Cell::kGates>(R, whole, sums, back);
      }
      finish_stored<Cell::kSums>(*this, 0, first, R, static_cast<int>(some),
                                 static_cast<T*>(stored));
      (back ? left.end : left.begin) += back ? -some : some;
    }
  }

  template <int R, int NB>
  FUSED_RNN_INLINE void whole_tile(int64_t row, int64_t block) {
    Vec<T> sum[R][NB][Cell::kSums];
    sums_of(row, block, sum);
    finish_tile(*this, row, block, sum);
  }

  template <int R, int NB>
  FUSED_RNN_INLINE void sums_of(int64_t row, int64_t block, Vec<T> (&sum)[R][NB][Cell::kSums]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
        for (int s = 0; s < Cell::kSums; ++s) sum[r][b][s] = begin(row + r, block + b, s);
      }
    }
    multiply<typename Cell::XMap>(
        sum, rows_of<R>(row, &ForwardRow<E>::x), I, plan.packed.x + block * Packed::panel(x_size()),
        Packed::kStride, Packed::panel(x_size()), Packed::part(x_size()), plan.x_from_memory);
    if (from_zeros) return;
    multiply<typename Cell::HMap>(sum, rows_of<R>(row, &ForwardRow<E>::h_prev), h_size(),
                                  plan.packed.h + block * Packed::panel(h_size()), Packed::kStride,
                                  Packed::panel(h_size()), Packed::part(h_size()),
                                  plan.h_from_memory);
  }

  // A tile that calls for its share of what the next block wants. A function of its own, since the
  // pieces of the products take registers from others; sums that h does not add to are left out of
  // its product for the same reason.
  template <int R>
  __attribute__((noinline)) void calling_tile(int64_t row, int64_t block) {
    using V = Vec<T>;
    constexpr int kGates = Cell::kGates;
    static_assert(Packed::kAbreast == kGates);
    if (row == 0 && !packs) list_next_panel(block);
    const auto call = [&](int) __attribute__((always_inline)) { calls.some(); };
    V sum[R][1][Cell::kSums];
    alignas(64) T with_x[R * Cell::kSums * V::kLanes];
    if (I > 0) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int s = 0; s < Cell::kSums; ++s) sum[r][0][s] = begin(row + r, block, s);
      }
      multiply_in_pieces<typename Cell::XMap, kPiecesOfCalls>(
          sum, rows_of<R>(row, &ForwardRow<E>::x), I, plan.packed.x + block * Packed::panel(I),
          Packed::kStride, 0, plan.x_from_memory, call);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int s = 0; s < Cell::kSums; ++s)
          sum[r][0][s].store(with_x + (r * Cell::kSums + s) * V::kLanes);
      }
    }
    const auto begin_h = [&](int r, int s) __attribute__((always_inline)) {
      return I > 0 ? V::load(with_x + (r * Cell::kSums + s) * V::kLanes) : begin(row + r, block, s);
    };
    V with_h[R][1][kGates];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int g = 0; g < kGates; ++g) with_h[r][0][g] = begin_h(r, Cell::HMap::at(g));
    }
    if (!from_zeros) {
      multiply_in_pieces<InOrder<kGates>, kPiecesOfCalls>(
          with_h, rows_of<R>(row, &ForwardRow<E>::h_prev), h_size(),
          plan.packed.h + block * Packed::panel(h_size()), Packed::kStride, 0, plan.h_from_memory,
          call);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int s = 0; s < Cell::kSums; ++s) sum[r][0][s] = begin_h(r, s);
#pragma GCC unroll 8
      for (int g = 0; g < kGates; ++g) sum[r][0][Cell::HMap::at(g)] = with_h[r][0][g];
    }
    finish_tile(*this, row, block, sum);
  }

  // The block that comes next.
  int64_t after(int64_t block) const { return back ? block - 1 : block + 1; }

  bool calls_for_panel(int64_t block) const {
    return plan.beyond_caches && plan.ahead && after(block) >= blocks.begin &&
           after(block) < blocks.end;
  }

  void list_next_panel(int64_t block) {
    calls.clear();
    calls.add(plan.packed.h + after(block) * Packed::panel(h_size()), Packed::panel(h_size()));
    calls.divide(tiles_of(count), pieces());
  }

  // How often a tile makes calls.
  int64_t pieces() const { return kPiecesOfCalls * ((I > 0 ? 1 : 0) + (from_zeros ? 0 : 1)); }

  // Part by part of the panels; the sums of all wait in L1 for the cell.
  template <int R>
  FUSED_RNN_INLINE void tile_in_parts(int64_t row, int64_t block) {
    constexpr int kSums = Cell::kSums;
    alignas(64) T sums[R * kSums * Vec<T>::kLanes];
    const auto x = rows_of<R>(row, &ForwardRow<E>::x);
    const auto h = rows_of<R>(row, &ForwardRow<E>::h_prev);
    [&]<int... P>(Lanes<P...>) __attribute__((always_inline)) {
      (make_part<R, P>(row, block, x, h, sums), ...);
    }(LaneSequence<Cell::kGates / Packed::kAbreast>{});
    finish_stored<kSums>(*this, row, block, R, 1, static_cast<T*>(sums));
  }

  // sums[r][s] of the gates in part kPart of a block's panels. Where x and h add to different sums
  // of a gate, that of x is done first and leaves its registers to that of h.
  template <int R, int kPart>
  FUSED_RNN_INLINE void make_part(int64_t row, int64_t block, const RowsAnywhere<E, R>& x,
                                  const RowsAnywhere<E, R>& h, T* sums) const {
    using V = Vec<T>;
    constexpr int kAbreast = Packed::kAbreast;
    using Gates = InOrder<kAbreast>;
    const auto x_sum = [](int v) { return Cell::XMap::at(kPart * kAbreast + v); };
    const auto h_sum = [](int v) { return Cell::HMap::at(kPart * kAbreast + v); };
    const auto at = [&](int r, int s) { return sums + (r * Cell::kSums + s) * V::kLanes; };
    V sum[R][1][kAbreast];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kAbreast; ++v) sum[r][0][v] = begin(row + r, block, x_sum(v));
    }
    multiply<Gates>(sum, x, I, panel<kPart>(plan.packed.x, x_size(), block), Packed::kStride, 0);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kAbreast; ++v) {
        if (x_sum(v) == h_sum(v)) continue;
        sum[r][0][v].store(at(r, x_sum(v)));
        sum[r][0][v] = begin(row + r, block, h_sum(v));
      }
    }
    if (!from_zeros) {
      multiply<Gates>(sum, h, h_size(), panel<kPart>(plan.packed.h, h_size(), block),
                      Packed::kStride, 0);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kAbreast; ++v) sum[r][0][v].store(at(r, h_sum(v)));
    }
  }

  template <int kPart>
  static const E* panel(const E* panels, int64_t depth, int64_t block) {
    return panels + block * Packed::panel(depth) + kPart * Packed::part(depth);
  }

  int64_t x_size() const { return plan.args.shape.I; }
  int64_t h_size() const { return plan.args.shape.hidden(); }

  template <int R>
  FUSED_RNN_INLINE RowsAnywhere<E, R> rows_of(int64_t row,
                                              const E* ForwardRow<E>::* operand) const {
    RowsAnywhere<E, R> result;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) result.row[r] = rows[row + r].*operand;
    return result;
  }

  // What a sum begins with: the biases, or the input product that has them.
  FUSED_RNN_INLINE Vec<T> begin(int64_t row, int64_t block, int s) const {
    constexpr int kLanes = Vec<T>::kLanes;
    const T* from = plan.packed.bias + (block * Cell::kSums + s) * kLanes;
    if (const T* const ahead = rows[row].ahead; ahead != nullptr) {
#pragma GCC unroll 8
      for (int g = 0; g < Cell::kGates; ++g) {
        if (Cell::XMap::at(g) == s) from = ahead + (block * Cell::kGates + g) * kLanes;
      }
    }
    return Vec<T>::load(from);
  }

  static constexpr bool kActivates = Cell::kActivates;
  static FUSED_RNN_INLINE void activate(Vec<T> (&sum)[Cell::kSums]) { Cell::activate(sum); }

  // Of sums that have been activated.
  FUSED_RNN_INLINE void finish(int64_t row, int64_t block, const Vec<T> (&sum)[Cell::kSums]) {
    using V = Vec<T>;
    const ForwardRow<E>& at = rows[row];
    const int64_t H = plan.args.shape.H;
    const int64_t unit = block * V::kLanes;
    const int n = lanes_of<T>(block, H);
    CellState<T> prev{V::zero(), V::zero()};
    if constexpr (Plan::kKeepsState) {
      prev.h = V::load(at.state + unit, n);
    } else if constexpr (Cell::kReadsPrevious) {
      prev.h = Operand<E>::widened(at.h_prev + unit, n);
    }
    if constexpr (Cell::kHasState) prev.c = V::load(at.c_prev + unit, n);
    V saved[4];
    const CellState<T> next = Cell::update(sum, prev, saved);
    Operand<E>::narrow(next.h, at.h + unit, n);
    if constexpr (Plan::kKeepsState) next.h.store(at.state + unit, n);
    if constexpr (Cell::kHasState) next.c.store(at.c + unit, n);
    if constexpr (Cell::kSaved > 0) {
      if (at.gates != nullptr) {
#pragma GCC unroll 8
        for (int s = 0; s < Cell::kSaved; ++s) saved[s].store(at.gates + s * H + unit, n);
      }
    }
  }
};

// The tiles of kRows rows: sums in registers, stored for `count` blocks from block `first` on.
template <typename Cell, typename E, int kRows>
struct SumsOfFewRows {
  using T = sum_t<E>;

  ForwardStep<Cell, E>& step;
  int64_t first;
  int64_t count;
  T* stored;  // [kRows][count][kSums][kLanes]

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    if constexpr (R == kRows) {
      Vec<T> sum[R][NB][Cell::kSums];
      step.sums_of(row, block, sum);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        T* to = stored + (r * count + block - first) * Cell::kSums * Vec<T>::kLanes;
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
          for (int s = 0; s < Cell::kSums; ++s, to += Vec<T>::kLanes) sum[r][b][s].store(to);
        }
      }
    }
  }

  void tail() {
    constexpr int kUnit = Cell::kSums * Vec<T>::kLanes;
    with_tail<Cell::kGates>(step.plan.packed.tail, [&](auto vectors) {
      step.template sums_of_tail<kRows, vectors>(0, stored + (step.plan.blocks - 1 - first) * kUnit,
                                                 count * kUnit);
    });
  }
};

// The tiles of a tail of V vectors.
template <typename Cell, typename E, int V>
struct TailOfStep {
  ForwardStep<Cell, E>& step;

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    if constexpr (NB == 1) {
      using T = sum_t<E>;
      constexpr int kUnit = Cell::kSums * Vec<T>::kLanes;
      alignas(64) T sums[R * kUnit];
      if constexpr (R > 1) step.template call_for_input<R, 1>(row, block);
      step.template sums_of_tail<R, V>(row, sums, kUnit);
      finish_stored<Cell::kSums>(step, row, block, R, 1, static_cast<T*>(sums));
    }
  }
};
