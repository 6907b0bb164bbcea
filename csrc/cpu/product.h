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

// The product for M rows and the given blocks of columns.
template <typename T, bool kTransposed>
void multiply_matrices(const Product<T, kTransposed>& product, int64_t M, Range blocks) {
  for (Range some = blocks; some.begin < blocks.end; some.begin = some.end) {
    some.end = some.begin + kBlocksAbreast < blocks.end ? some.begin + kBlocksAbreast : blocks.end;
    Product<T, kTransposed> part = product;
    int64_t k = 0;
    do {
      part.K = product.K - k < kDepth ? product.K - k : kDepth;
      for_each_tile<1>(M, some, part);
      part.a += kTransposed ? part.K * part.a_stride : part.K;
      part.b.data += part.K * part.b.k_stride;
      part.add = true;
      k += part.K;
    } while (k < product.K);
  }
}
