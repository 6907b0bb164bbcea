// Plain products of matrices, made of the same tile: gradients of weights and inputs.

// c[m][n] = sum over k of a[m][k] * b[k][n], added to what c holds when `add`.
template <typename T>
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
    const T* rows[R];
    T* to = c + row * c_stride + block * kLanes;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      rows[r] = a + (row + r) * a_stride;
#pragma GCC unroll 8
      for (int i = 0; i < NB; ++i) {
        sum[r][i][0] = add ? Vec<T>::load(to + r * c_stride + i * kLanes, lanes_of<T>(block + i, N))
                           : Vec<T>::zero();
      }
    }
    multiply<R, NB, 1, InOrder<1>>(sum, rows, K, b.at(block), b.k_stride, b.block_stride);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int i = 0; i < NB; ++i)
        sum[r][i][0].store(to + r * c_stride + i * kLanes, lanes_of<T>(block + i, N));
    }
  }
};

// Depth of one pass over k: 4 blocks of columns of this depth stay in L2 beside the rows.
constexpr int64_t kDepth = 768;

// The product for M rows and the given blocks of columns.
template <typename T>
void multiply_matrices(Product<T> p, int64_t M, Range blocks) {
  const int64_t K = p.K;
  int64_t k = 0;
  do {
    p.K = K - k < kDepth ? K - k : kDepth;
    for_each_tile<1>(M, blocks, p);
    p.a += p.K;
    p.b.data += p.K * p.b.k_stride;
    p.add = true;
    k += p.K;
  } while (k < K);
}
