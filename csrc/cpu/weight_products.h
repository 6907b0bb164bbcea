// The gradients of weights: columns of deltas times what the weights were multiplied with. A list
// of such products is divided between threads.

// grad[i] (+)= the sum of column i.
template <typename E>
void sum_columns(const E* rows, int64_t stride, int64_t K, int64_t count, sum_t<E>* grad,
                 bool add) {
  using V = Vec<sum_t<E>>;
  constexpr int kBlocks = 8;
  for (int64_t block = 0; block < blocks_of<sum_t<E>>(count); block += kBlocks) {
    const auto lanes = [&](int b) __attribute__((always_inline)) {
      const int64_t left = count - (block + b) * V::kLanes;
      return left < 0 ? 0 : left < V::kLanes ? static_cast<int>(left) : V::kLanes;
    };
    const int64_t first = block * V::kLanes;
    V sum[kBlocks];
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) {
      sum[b] = add && lanes(b) > 0 ? V::load(grad + first + b * V::kLanes, lanes(b)) : V::zero();
    }
    for (int64_t k = 0; k < K; ++k) {
      const E* row = rows + k * stride + first;
#pragma GCC unroll 8
      for (int b = 0; b < kBlocks; ++b) {
        if (lanes(b) > 0) sum[b] = sum[b] + Operand<E>::widened(row + b * V::kLanes, lanes(b));
      }
    }
#pragma GCC unroll 8
    for (int b = 0; b < kBlocks; ++b) {
      if (lanes(b) > 0) sum[b].store(grad + first + b * V::kLanes, lanes(b));
    }
  }
}

// Some columns of a left-hand operand, and what is made of them.
template <typename E>
struct ProductsOfColumns {
  using T = sum_t<E>;

  // grad[m][n] (+)= sum over rows k of left[k][m] * right[k][n]
  struct With {
    OperandRows<E> right;
    Range not_zero;  // rows of `right`: all but some that are zeros
    int64_t N;       // columns of `right`
    T* grad;         // [columns, N], or null
  };

  const E* rows;    // the left-hand operand, row by row
  const E* left;    // the same by columns, as products read it: itself where a group is one element
  int64_t stride;   // of both
  int64_t columns;  // of both
  T* sums[2];       // [columns], or null: of the columns, twice
  With with[2];

  T* sum() const { return sums[0] != nullptr ? sums[0] : sums[1]; }

  // What a block of the columns costs: vectors of right-hand rows, and of the columns if summed.
  int64_t cost(int64_t K) const {
    int64_t vectors = 1 + (sum() != nullptr ? K : 0);  // even gradients of zeros are written
    for (const With& one : with) {
      if (one.grad == nullptr) continue;
      vectors += (sum() != nullptr ? one.not_zero.size() : K) * blocks_of<T>(one.N);
    }
    return vectors;
  }

  // Of K rows, for some of the columns.
  void run(Range some, int64_t K, bool add, E* scratch) const {
    bool finite = false;
    if (sum() != nullptr) {
      sum_columns(rows + some.begin, stride, K, some.size(), sum() + some.begin, add);
      if (sums[0] != nullptr && sums[1] != nullptr) {
        __builtin_memcpy(sums[1] + some.begin, sums[0] + some.begin,
                         static_cast<size_t>(some.size()) * sizeof(T));
      }
      finite = are_finite(sum() + some.begin, some.size());
    }
    for (const With& one : with) {
      if (one.grad == nullptr) continue;
      // Zeros times deltas are zeros if those are finite; then so are their sums.
      const Range used = finite ? one.not_zero : Range{0, K};
      const Product<E, Left::columns> product{
          left + used.begin * stride + some.begin * Operand<E>::kGroup,
          stride,
          {},
          used.size(),
          one.grad + some.begin * one.N,
          one.N,
          one.N,
          add};
      multiply_rows(product, one.right.from(used.begin), some.size(), scratch);
    }
  }
};

// All of a layer, divided between threads: each has its part of the columns of all, cut where parts
// cost the same. (The columns of a GRU's r and z are in two products, those of n in one. Forward
// and backward on two threads with as many columns for each, and as it is: H = 64, T = 50, B = 16
// 0.352 ms and 0.343, H = 512, T = 25, B = 32 17.7 and 16.2. With x on one thread and h_prev on the
// other LSTMs are 1 to 3 % slower.)
template <typename E>
class WeightProducts {
 public:
  static constexpr int kMost = 3;  // sets of a GRU

  WeightProducts(int64_t K, bool add) : K_(K), add_(add) {}

  void append(const ProductsOfColumns<E>& products) { all_[count_++] = products; }

  void run(int id, int team, E* scratch) const {
    int64_t total = 0;
    for (int i = 0; i < count_; ++i) total += blocks_of<T>(all_[i].columns) * all_[i].cost(K_);
    const Range mine{total * id / team, total * (id + 1) / team};
    int64_t done = 0;
    for (int i = 0; i < count_; ++i) {
      const ProductsOfColumns<E>& products = all_[i];
      const int64_t blocks = blocks_of<T>(products.columns);
      const int64_t cost = products.cost(K_);
      // A block belongs to the thread in whose part of the costs it begins.
      const auto first_from = [&](int64_t at) {
        const int64_t block = at <= done ? 0 : (at - done + cost - 1) / cost;
        return block < blocks ? block : blocks;
      };
      const Range some =
          columns_of<T>({first_from(mine.begin), first_from(mine.end)}, products.columns);
      if (some.size() > 0) products.run(some, K_, add_, scratch);
      done += blocks * cost;
    }
  }

 private:
  using T = sum_t<E>;

  int64_t K_;
  bool add_;
  int count_ = 0;
  ProductsOfColumns<E> all_[kMost];
};
