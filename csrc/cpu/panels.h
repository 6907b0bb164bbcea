// Weights and other right-hand operands as tiles read them: blocks of kLanes columns, and for each
// k the columns of a block (of all gates of a block of units) side by side.

template <typename T>
constexpr int64_t blocks_of(int64_t columns) {
  return (columns + Vec<T>::kLanes - 1) / Vec<T>::kLanes;
}

// Lanes in use in a block of `columns` columns.
template <typename T>
FUSED_RNN_INLINE int lanes_of(int64_t block, int64_t columns) {
  const int64_t left = columns - block * Vec<T>::kLanes;
  return left < Vec<T>::kLanes ? static_cast<int>(left) : Vec<T>::kLanes;
}

// The columns of a range of blocks.
template <typename T>
Range columns_of(Range blocks, int64_t columns) {
  const auto clipped = [&](int64_t block) {
    const int64_t column = block * Vec<T>::kLanes;
    return column < columns ? column : columns;
  };
  return {clipped(blocks.begin), clipped(blocks.end)};
}

// The weights of one product that a block of units takes part in:
// to[k][g][lane] = w[g * H + block * kLanes + lane][k], zeros past H.
template <typename T>
void pack_gates(const T* w, int64_t gates, int64_t H, int64_t K, int64_t block, T* to) {
  constexpr int kLanes = Vec<T>::kLanes;
  const int n = lanes_of<T>(block, H);
  for (int64_t g = 0; g < gates; ++g) {
    const T* rows[kLanes] = {};
    for (int j = 0; j < n; ++j) rows[j] = w + (g * H + block * kLanes + j) * K;
    transpose_strip(rows, n, K, to + g * kLanes, gates * kLanes);
  }
}

// Rows of a right-hand operand as its owner has them: `stride` apart, or anywhere.
template <typename T>
struct OperandRows {
  const T* data;
  int64_t stride;
  const T* const* anywhere = nullptr;

  FUSED_RNN_INLINE const T* at(int64_t k) const {
    return anywhere != nullptr ? anywhere[k] : data + k * stride;
  }
};

// K rows of `columns` columns, from row `first` on: to[k][lane] = b[first + k][block * kLanes +
// lane], zeros past the last column.
template <typename T>
void pack_columns(const OperandRows<T>& b, int64_t first, int64_t K, int64_t columns, int64_t block,
                  T* to) {
  constexpr int kLanes = Vec<T>::kLanes;
  const int n = lanes_of<T>(block, columns);
  for (int64_t k = 0; k < K; ++k)
    Vec<T>::load(b.at(first + k) + block * kLanes, n).store(to + k * kLanes);
}

// A right-hand operand of a plain product. Block i starts at data + i * block_stride; its vector
// for k at a further k * k_stride. All kLanes lanes of the last block can be read.
template <typename T>
struct Columns {
  const T* data;
  int64_t k_stride;
  int64_t block_stride;

  const T* at(int64_t block, int64_t k = 0) const {
    return data + block * block_stride + k * k_stride;
  }

  static Columns packed(const T* data, int64_t K) {
    return {data, Vec<T>::kLanes, K * Vec<T>::kLanes};
  }
  static Columns in_place(const T* data, int64_t stride) { return {data, stride, Vec<T>::kLanes}; }
};
