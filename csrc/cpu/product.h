// Plain products of matrices, made of the same tile: gradients of weights and inputs.

// How a product has its left-hand operand: as rows or as the columns of a matrix, which is thus
// read as its transpose; where they are, or as copies of them, those of a tile together (strips.h).
enum class Left { rows, columns, copied_rows, copied_columns };

// c[m][n] = sum over k of a[m][k] * b[k][n], added to what c holds when `add`. c is of the type of
// sums, or rounded to E.
template <typename E, Left kLeft = Left::rows, typename C = sum_t<E>>
struct Product {
  using T = sum_t<E>;

  const E* a;
  int64_t a_stride;  // between the rows of a matrix; of copied columns, how deep they are
  Columns<E> b;
  int64_t K;
  C* c;
  int64_t c_stride;
  int64_t N;
  bool add;

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    constexpr int kLanes = Vec<T>::kLanes;
    constexpr bool kLarge = kLeft == Left::copied_rows || kLeft == Left::copied_columns;
    Vec<T> sum[R][NB][1];
    C* const to = c + row * c_stride + block * kLanes;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < NB; ++i) {
        sum[r][i][0] = Vec<T>::zero();
        // A large c comes from afar: it is on its way while the sums are made.
        if (kLarge && add) __builtin_prefetch(to + r * c_stride + i * kLanes, 1);
      }
    }
    if constexpr (kLeft == Left::rows || kLeft == Left::copied_rows) {
      RowsAnywhere<E, R> rows;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) rows.row[r] = a + (row + r) * a_stride;
      multiply<InOrder<1>>(sum, rows, K, b.at(block), b.k_stride, b.block_stride, 0, b.from_memory);
    } else {
      const RowsOfTranspose<E> rows =
          kLeft == Left::columns ? RowsOfTranspose<E>{a + row * Operand<E>::kGroup, a_stride}
                                 : RowsOfTranspose<E>{a + row * a_stride, R};
      multiply<InOrder<1>>(sum, rows, K, b.at(block), b.k_stride, b.block_stride, 0, b.from_memory);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < NB; ++i) {
        C* const at = to + r * c_stride + i * kLanes;
        const int lanes = lanes_of<T>(block + i, N);
        if (add) sum[r][i][0] = Operand<C>::widened(at, lanes) + sum[r][i][0];
        Operand<C>::narrow(sum[r][i][0], at, lanes);
      }
    }
  }
};

// A product is computed a part at a time, kDepth deep and kBlocksAbreast blocks of columns wide
// (simd/<set>.h): the part's panels stay in L2 while the rows of `a` pass by, a tile's rows in L1
// while its blocks do, and c in cache while k does.

// The product for M rows and the given blocks, a part of the columns and of k at a time:
// panel(some, k, depth) gives the columns of that part of b. Sums that c rounds are never taken up
// again: there all of k is one part.
template <typename E, Left kLeft, typename C, typename Panel>
void for_each_part(const Product<E, kLeft, C>& product, int64_t M, Range blocks,
                   const Panel& panel) {
  static_assert(kLeft == Left::rows || kLeft == Left::columns);
  constexpr bool kColumns = kLeft == Left::columns;
  constexpr int kLanes = Vec<sum_t<E>>::kLanes;
  const int64_t deepest = sizeof(C) == sizeof(sum_t<E>) ? kDepth : product.K;
  for (Range some = blocks; some.begin < blocks.end; some.begin = some.end) {
    some.end = some.begin + kBlocksAbreast < blocks.end ? some.begin + kBlocksAbreast : blocks.end;
    Product<E, kLeft, C> part = product;
    part.c += some.begin * kLanes;
    part.N -= some.begin * kLanes;
    int64_t k = 0;
    do {
      part.K = product.K - k < deepest ? product.K - k : deepest;
      part.b = panel(some, k, part.K);
      const int64_t tiles = tiles_of(M);
      for (int64_t i = 0; i < tiles; ++i) {
        const Range rows = share(M, tiles, i);
        Product<E, kLeft, C> tile = part;
        tile.a += rows.begin * (kColumns ? Operand<E>::kGroup : part.a_stride);
        tile.c += rows.begin * part.c_stride;
        for_each_tile<1>(rows.size(), Range{0, some.size()}, tile);
      }
      part.a += kColumns ? part.K * part.a_stride : part.K;
      part.add = true;
      k += part.K;
    } while (k < product.K);
  }
}

// The product for M rows and the given blocks of columns, b as it is given.
template <typename E, Left kLeft, typename C>
void multiply_matrices(const Product<E, kLeft, C>& product, int64_t M, Range blocks) {
  for_each_part(product, M, blocks, [&](Range some, int64_t k, int64_t) {
    Columns<E> part = product.b;
    part.data = product.b.at(some.begin, k);
    return part;
  });
}

// Scratch that multiply_parts needs for a product of depth K.
template <typename E>
int64_t part_size(int64_t K) {
  return kBlocksAbreast * depth_of<E>(K < kDepth ? K : kDepth) * Vec<sum_t<E>>::kLanes;
}

// Right-hand rows are read in place where packing them would not pay: by few tiles of rows of `a`,
// and with columns that fill the blocks, which are read whole. Groups have to be packed.
constexpr int64_t kFewUses = 4;

template <typename E>
bool worth_packing(int64_t columns, int64_t uses, int64_t few = kFewUses) {
  return Operand<E>::kGroup > 1 || uses > few || columns % Vec<sum_t<E>>::kLanes != 0;
}

// Rows of more than this many bytes in all have left the caches when the next tile comes, lying as
// far apart as they do, and packing pays from two tiles on (AVX2, the backward pass in place and
// packed: LSTM H = 512, T = 25, B = 1 4.60 ms and 4.44, T = 1, B = 16 2.22 and 1.95, H = 1024, B =
// 16 13.6 and 12.1, GRU H = 512, T = 25, B = 1 4.73 and 4.64; of 1 MB, LSTM H = 256 0.78 and 0.80).
constexpr int64_t kLeavesCaches = 1 << 20;
constexpr int64_t kFewUsesOutsideCaches = 1;

// The product for M rows and all columns, where b is given as rows: each part is packed just before
// it is used.
template <typename E, Left kLeft>
void multiply_parts(Product<E, kLeft> product, const OperandRows<E>& b, int64_t M, E* scratch) {
  const Range blocks{0, blocks_of<sum_t<E>>(product.N)};
  if constexpr (Operand<E>::kGroup == 1) {
    const int64_t bytes = product.K * product.N * static_cast<int64_t>(sizeof(E));
    const int64_t few = bytes > kLeavesCaches ? kFewUsesOutsideCaches : kFewUses;
    if (b.anywhere == nullptr && !worth_packing<E>(product.N, M / kTileRows, few)) {
      product.b = Columns<E>::in_place(b.data, b.stride);
      product.b.from_memory = comes_from_memory<E>(product.K, product.N);
      return multiply_matrices(product, M, blocks);
    }
  }
  for_each_part(product, M, blocks, [&](Range some, int64_t first, int64_t depth) {
    pack_panels(b, first, depth, product.N, some, scratch);
    return Columns<E>::packed(scratch, depth);
  });
}
