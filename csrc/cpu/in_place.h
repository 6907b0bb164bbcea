// Steps that read the weights where they are, in torch's layout.

// A step of up to kMostInPlace rows with the weights in torch's layout, block of units by block:
// products that are summed lane by lane, or, of rows that nearly fill vectors, products whose lanes
// they are.
template <typename Cell, typename E>
struct InPlace {
  using T = sum_t<E>;
  using V = Vec<T>;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kMost = kMostInPlace;
  static_assert(kMost == padded_rows<T>(kMost));
  using ByLanes = ProductsAsLanes<E, kRowsInPlaceWide>;
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
    const int64_t padded = padded_rows<T>(rows);
    const E* x[kMost];
    const E* h[kMost];
    for (int64_t i = 0; i < padded; ++i) {
      const ForwardRow<E>& row = step.rows[i < rows ? i : rows - 1];
      x[i] = row.x;
      h[i] = row.h_prev;
    }
    const bool lanes = step.plan.rows_as_lanes;
    if (lanes) {
      ByLanes::pack(x, rows, I, step.plan.x_lanes);
      ByLanes::pack(h, rows, O, step.plan.h_lanes);
    }
    const RowsOfOperand<E> of_x{x, I, step.plan.x_from_memory};
    const RowsOfOperand<E> of_h{h, O, step.plan.h_from_memory};
    DotsOfStep dots{{{of_x, of_h}, rows}, {{of_x}, rows}, {{of_h}, rows}};
    for (int64_t j = 0; j < blocks.size(); ++j) {
      const int64_t block = at(j);
      alignas(64) T sums[kMost * kStride];
      for (int64_t i = 0; i < padded; ++i) {
#pragma GCC unroll 8
        for (int sum = 0; sum < Cell::kSums; ++sum)
          step.begin(i < rows ? i : rows - 1, block, sum).store(sums + i * kStride + sum * kLanes);
      }
      const bool from_zeros = step.h_is_zeros && rows >= kRowsWorthALook && makes_zeros(block);
      if (lanes) {
        by_lanes(block, rows, from_zeros, sums);
      } else {
        dot_products(block, dots, from_zeros, sums);
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
      const E* const weights = w.w_hh + (g * H + unit) * O;
      if (kAhead && step.plan.h_from_l3) {
        products.template add<kAhead, false, products.kReadFromL3>(weights, n, &at.h_prev, O);
      } else {
        products.template add<kAhead>(weights, n, &at.h_prev, O);
      }
      h_sum = h_sum + products.total();
    }
    step.activate(sum);
    step.finish(0, block, sum);
  }

  struct DotsOfStep {
    RowsInPlace<E, 2> both;  // of gates whose products with x and h add up
    RowsInPlace<E, 1> x;
    RowsInPlace<E, 1> h;
  };

  // Whether the products of an h of zeros with a block of w_hh are zeros.
  bool makes_zeros(int64_t block) const {
    for (int g = 0; g < kGates; ++g) {
      if (!are_finite(w.w_hh + (g * H + block * kLanes) * O, lanes_of<T>(block, H) * O))
        return false;
    }
    return true;
  }

  // Where the input products are ahead, the sums begin with them.
  void dot_products(int64_t block, DotsOfStep& dots, bool from_zeros, T* sums) {
    const int n = lanes_of<T>(block, H);
    for (int g = 0; g < kGates; ++g) {
      const E* const w_ih = w.w_ih + (g * H + block * kLanes) * I;
      const E* const w_hh = w.w_hh + (g * H + block * kLanes) * O;
      T* const x_sums = sums + Cell::XMap::at(g) * kLanes;
      T* const h_sums = sums + Cell::HMap::at(g) * kLanes;
      const bool ahead = step.plan.ahead;
      if (!ahead && !from_zeros && x_sums == h_sums) {
        dots.both.add({w_ih, w_hh}, n, x_sums, kStride);
        continue;
      }
      if (!ahead) dots.x.add({w_ih}, n, x_sums, kStride);
      if (!from_zeros) dots.h.add({w_hh}, n, h_sums, kStride);
    }
  }

  void by_lanes(int64_t block, int64_t count, bool from_zeros, T* sums) {
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
      if (apart || from_zeros) add_to(Cell::XMap::at(g));
      if (from_zeros) continue;
      products.multiply(w.w_hh + unit * O, O, step.plan.h_lanes, !apart);
      add_to(Cell::HMap::at(g));
    }
  }
};
