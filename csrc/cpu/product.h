// Plain products of matrices, made of the same tile: gradients of weights and inputs.

// c[m][n] = sum over k of a[m][k] * b[k][n], added to what c holds when `add`. A transposed a is
// given as a[k][m].
template <typename T, bool kTransposed = false>
struct Product {
  const T* a;
  int64_t a_stride;
  Columns<T> b;
  int64_t K;
  T* c;
  int64_t c_stride;
  int64_t N;
  bool add;

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    constexpr int kLanes = Vec<T>::kLanes;
    Vec<T> sum[R][NB][1];
    T* to = c + row * c_stride + block * kLanes;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < NB; ++i) {
        sum[r][i][0] = add ? Vec<T>::load(to + r * c_stride + i * kLanes, lanes_of<T>(block + i, N))
                           : Vec<T>::zero();
      }
    }
    if constexpr (kTransposed) {
      const RowsOfTranspose<T> rows{a + row, a_stride};
      multiply<InOrder<1>>(sum, rows, K, b.at(block), b.k_stride, b.block_stride);
    } else {
      RowsAnywhere<T, R> rows;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) rows.row[r] = a + (row + r) * a_stride;
      multiply<InOrder<1>>(sum, rows, K, b.at(block), b.k_stride, b.block_stride);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < NB; ++i)
        sum[r][i][0].store(to + r * c_stride + i * kLanes, lanes_of<T>(block + i, N));
    }
  }
};

// Depth of one pass over k, and blocks of columns side by side in it: their panels stay in L2 while
// the rows of `a` pass by, and their part of c while k does.
constexpr int64_t kDepth = 512;
constexpr int64_t kBlocksAbreast = 4;

// The product for M rows and the given blocks, a part of the columns and of k at a time:
// panel(some, k, depth) gives the columns of that part of b.
template <typename T, bool kTransposed, typename Panel>
void for_each_part(const Product<T, kTransposed>& product, int64_t M, Range blocks,
                   const Panel& panel) {
  for (Range some = blocks; some.begin < blocks.end; some.begin = some.end) {
    some.end = some.begin + kBlocksAbreast < blocks.end ? some.begin + kBlocksAbreast : blocks.end;
    Product<T, kTransposed> part = product;
    part.c += some.begin * Vec<T>::kLanes;
    part.N -= some.begin * Vec<T>::kLanes;
    int64_t k = 0;
    do {
      part.K = product.K - k < kDepth ? product.K - k : kDepth;
      part.b = panel(some, k, part.K);
      for_each_tile<1>(M, Range{0, some.size()}, part);
      part.a += kTransposed ? part.K * part.a_stride : part.K;
      part.add = true;
      k += part.K;
    } while (k < product.K);
  }
}

// The product for M rows and the given blocks of columns, b as it is given.
template <typename T, bool kTransposed>
void multiply_matrices(const Product<T, kTransposed>& product, int64_t M, Range blocks) {
  for_each_part(product, M, blocks, [&](Range some, int64_t k, int64_t) {
    Columns<T> part = product.b;
    part.data = product.b.at(some.begin, k);
    return part;
  });
}

// Scratch that multiply_rows needs for a product of depth K.
template <typename T>
int64_t part_size(int64_t K) {
  return kBlocksAbreast * (K < kDepth ? K : kDepth) * Vec<T>::kLanes;
}

// Right-hand rows are read in place where packing them would not pay: by so few rows of `a` that a
// tile or two are all their uses, and with columns that fill the blocks, which are read whole.
template <typename T>
bool worth_packing(int64_t columns, int64_t uses) {
  constexpr int64_t kUses = 4;
  return uses > kUses || columns % Vec<T>::kLanes != 0;
}

// The product for M rows and all columns, where b is given as rows: each part is packed just before
// it is used, so that no packed copy of all of b is ever needed.
template <typename T, bool kTransposed>
void multiply_rows(Product<T, kTransposed> product, const OperandRows<T>& b, int64_t M,
                   T* scratch) {
  const Range blocks{0, blocks_of<T>(product.N)};
  if (b.anywhere == nullptr && !worth_packing<T>(product.N, M / kTileRows)) {
    product.b = Columns<T>::in_place(b.data, b.stride);
    return multiply_matrices(product, M, blocks);
  }
  for_each_part(product, M, blocks, [&](Range some, int64_t first, int64_t depth) {
    for (int64_t block = some.begin; block < some.end; ++block)
      pack_columns(b, first, depth, product.N, block,
                   scratch + (block - some.begin) * depth * Vec<T>::kLanes);
    return Columns<T>::packed(scratch, depth);
  });
}
