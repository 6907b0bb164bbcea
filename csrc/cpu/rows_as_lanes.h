// Products with the weights as they lie, and the other operand packed instead: the lanes are its
// rows, kRows at most.
//   products[unit][row] = sum over k of w[unit][k] * lanes[row block][k][row]
template <typename E, int kRows>
struct ProductsAsLanes {
  using T = sum_t<E>;
  using V = Vec<T>;
  static constexpr int kLanes = V::kLanes;
  static_assert(kRows % kLanes == 0);

  static int64_t lanes_size(int64_t K) { return depth_of<E>(K) * kRows; }

  static void pack(const E* const* rows, int64_t count, int64_t K, E* lanes) {
    for (int64_t i = 0; i < blocks_of<T>(count); ++i) {
      transpose_strip(rows + i * kLanes, lanes_of<T>(i, count), K,
                      lanes + i * depth_of<E>(K) * kLanes, Operand<E>::kElements);
    }
  }

  const int units;
  const int64_t rows;
  alignas(64) T products[kLanes * kRows];

  ProductsAsLanes(int units, int64_t rows) : units(units), rows(rows) {}

  void multiply(const E* w, int64_t K, const E* lanes, bool add) {
    const Product<E> product{w, K, Columns<E>::packed(lanes, K), K, products, kRows, kRows, add};
    multiply_matrices(product, units, Range{0, blocks_of<T>(rows)});
  }

  // take(row, products of all units with it)
  template <typename Take>
  FUSED_RNN_INLINE void each_row(const Take& take) const {
    for (int64_t i = 0; i < blocks_of<T>(rows); ++i) {
      V square[kLanes];
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j)
        square[j] = j < units ? V::load(products + j * kRows + i * kLanes) : V::zero();
      transpose_square(square);
      const int n = lanes_of<T>(i, rows);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) {
        if (r < n) take(i * kLanes + r, square[r]);
      }
    }
  }
};
