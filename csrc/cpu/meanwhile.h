// One row: the input products of the next steps, made while a step reads w_hh.
//
// L2 gives w_hh so slowly that half of the multiply-adds which a step could do are idle. A tile of
// input products, kRows steps x a block of units, goes with some blocks of w_hh: four of the row's
// k, then one of the tile's. (A loop of nothing else, LSTM H = 128, ns a step: apart 1670; in turns
// 1400, with two registers for each of the row's sums 1530; four k unrolled, so that each load has
// a steady distance, 1450 to 1470; eight k, then two of the tile 2250. Layers are in
// csrc/DECISIONS.md.)
template <typename Cell, typename E>
class ProductsMeanwhile {
  using T = sum_t<E>;
  using V = Vec<T>;
  using Plan = ForwardPlan<Cell, E>;
  using Packed = typename Plan::Packed;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kSums = Cell::kSums;
  static constexpr int kRows = kStepsMeanwhile;
  // Blocks of w_hh that go with a tile, about: fewer than half as many more.
  static constexpr int64_t kBlocksATile = 4;
  static_assert(kBlocksATile + kBlocksATile / 2 <= kTogether);
  // The row's sums, beside a tile's, as chains of additions.
  static constexpr int kParts = kGates < 4 ? 2 : 1;

 public:
  // For the thread that has these blocks.
  ProductsMeanwhile(const Plan& plan, Range units)
      : plan_(plan), units_(units), whole_(plan.without_tail(units)), next_(units.end) {}

  // From now on the input products of the `count` rows of plan.ahead_x from `first` on, if any.
  void begin(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    next_ = count > 0 ? units_.begin : units_.end;
    // The last row stands for those that a tile has beyond it.
    for (int r = 0; count > 0 && r < kRows; ++r)
      x_.row[r] = plan_.ahead_x[first + (r < count ? r : count - 1)];
  }

  // The input products that no step has made.
  void finish() {
    if (next_ < units_.end) InputProducts<Cell, E>(plan_, first_).run(count_, {next_, units_.end});
    next_ = units_.end;
  }

  // Input products that a step can make, or that are left to finish().
  bool some_left() const { return next_ < units_.end; }

  // A step of one row, as ForwardStep::few_rows.
  void run(ForwardStep<Cell, E>& step) {
    const int64_t about = (units_.size() + kBlocksATile / 2) / kBlocksATile;
    const int64_t parts = about > 0 ? about : 1;
    for (int64_t i = 0; i < parts; ++i) {
      const Range part = share(units_.size(), parts, step.back ? parts - 1 - i : i);
      const Range blocks{units_.begin + part.begin, units_.begin + part.end};
      const Range whole = plan_.without_tail(blocks);
      alignas(64) T stored[kTogether * kSums * kLanes];
      SumsOfFewRows<Cell, E, 1> sums{step, blocks.begin, blocks.size(), stored};
      if (whole.size() < blocks.size()) sums.tail();
      if (next_ < whole_.end) {
        with_tile(step, whole, stored);
      } else {
        for (int64_t j = 0; j < whole.size(); ++j)
          sums.template tile<1, 1>(0, step.back ? whole.end - 1 - j : whole.begin + j);
      }
      finish_stored<kSums>(step, 0, blocks.begin, 1, static_cast<int>(blocks.size()),
                           static_cast<T*>(stored));
    }
  }

 private:
  // The sums of some blocks, and the next tile. A function of its own, since it takes nearly all
  // registers.
  __attribute__((noinline)) void with_tile(const ForwardStep<Cell, E>& step, Range blocks,
                                           T* stored) {
    const int64_t I = plan_.args.shape.I;
    const int64_t O = plan_.args.shape.hidden();
    const int64_t depth = step.from_zeros ? 0 : O;  // of the row's product
    static_assert(Packed::kAbreast == kGates);
    const E* const w_ih = plan_.packed.x + next_ * Packed::panel(I);
    const T* const bias = plan_.packed.bias + next_ * kSums * kLanes;
    V later[kRows][kGates];
#pragma GCC unroll 4
    for (int g = 0; g < kGates; ++g) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) later[r][g] = V::load(bias + Cell::XMap::at(g) * kLanes);
    }
    const RowsAnywhere<E, kRows> x = x_;
    const auto add_x = [&](int64_t k) __attribute__((always_inline)) {
      V w[kGates];
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) w[g] = V::load(w_ih + k * Packed::kStride + g * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const V value = x.at(r, k);
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g) later[r][g] = fma(value, w[g], later[r][g]);
      }
    };
    const RowsAnywhere<E, 1> h{{step.rows[0].h_prev}};
    int64_t done = 0;  // k of the tile
    for (int64_t i = 0; i < blocks.size(); ++i) {
      const int64_t at = step.back ? blocks.size() - 1 - i : i;
      const int64_t block = blocks.begin + at;
      T* const to = stored + at * kSums * kLanes;
#pragma GCC unroll 4
      for (int s = 0; s < kSums; ++s) step.begin(0, block, s).store(to + s * kLanes);
      V sum[kParts][kGates];
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        sum[0][g] = V::load(to + Cell::HMap::at(g) * kLanes);
        if constexpr (kParts > 1) sum[1][g] = V::zero();
      }
      const E* const w_hh = plan_.packed.h + block * Packed::panel(O);
      const auto add_h = [&](int part, int64_t k) __attribute__((always_inline)) {
        V* const sums = sum[part % kParts];
        const V value = h.at(0, k);
#pragma GCC unroll 4
        for (int g = 0; g < kGates; ++g)
          sums[g] = fma(value, V::load(w_hh + k * Packed::kStride + g * kLanes), sums[g]);
      };
      const int64_t until = I * (i + 1) / blocks.size();
      InTurns<1> turns(depth);
      for (int pair = 0; turns.has_pair(); turns.next(), ++pair) {
        add_h(0, turns.first());
        add_h(1, turns.second());
        if (pair % 2 != 0 && done < until) add_x(done++);
      }
      for (int64_t k = turns.end(); k < depth; ++k) add_h(0, k);
      for (; done < until; ++done) add_x(done);
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g) {
        if constexpr (kParts > 1) sum[0][g] = sum[0][g] + sum[1][g];
        sum[0][g].store(to + Cell::HMap::at(g) * kLanes);
      }
    }
    T* const sums = plan_.ahead_sums + first_ * plan_.ahead_stride() + next_ * kGates * kLanes;
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int g = 0; g < kGates; ++g)
        later[r][g].store(sums + r * plan_.ahead_stride() + g * kLanes);
    }
    ++next_;
  }

  const Plan& plan_;
  Range units_;
  Range whole_;   // without a tail
  int64_t next_;  // block
  int64_t first_ = 0;
  int64_t count_ = 0;
  RowsAnywhere<E, kRows> x_{};
};
