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

// The vectors of a panel that lie side by side. Fewer than all of a unit where the registers would
// hold less than four rows of those: a panel is then as many parts, one behind the other, and tiles
// of more rows than the registers hold whole go through it part by part. A part that is read from
// end to end comes faster from L2 and L3 than every other line of a whole (AVX2, LSTM H = 512,
// B = 4: products of a step 87 us in parts of two gates, 104 by every other line, 134 as two tiles
// of two rows).
constexpr int vectors_abreast(int vectors) {
  return vectors % 2 == 0 && kTileSums / vectors < 4 ? vectors / 2 : vectors;
}

// The weights of one product that a block of units takes part in, k in whole groups:
// to[part][k][g][lane] = w[(part * abreast + g) * H + block * kLanes + lane][k], zeros past H and
// K. notice gets all of it (simd/transpose.h).
template <typename E, typename Notice = NoNotice>
void pack_gates(const E* w, int gates, int64_t H, int64_t K, int64_t block, E* to,
                Notice&& notice = {}) {
  constexpr int kLanes = Vec<sum_t<E>>::kLanes;
  constexpr int kElements = Operand<E>::kElements;
  const int n = lanes_of<sum_t<E>>(block, H);
  const int abreast = vectors_abreast(gates);
  for (int g = 0; g < gates; ++g) {
    const E* rows[kLanes] = {};
    for (int j = 0; j < n; ++j) rows[j] = w + (g * H + block * kLanes + j) * K;
    transpose_strip(rows, n, K,
                    to + g / abreast * abreast * depth_of<E>(K) * kLanes + g % abreast * kElements,
                    abreast * kElements, notice);
  }
}

// Rows of a right-hand operand as its owner has them: `stride` apart, or anywhere.
template <typename E>
struct OperandRows {
  const E* data;
  int64_t stride;
  const E* const* anywhere = nullptr;

  FUSED_RNN_INLINE const E* at(int64_t k) const {
    return anywhere != nullptr ? anywhere[k] : data + k * stride;
  }
  OperandRows from(int64_t k) const {
    if (anywhere != nullptr) return {nullptr, 0, anywhere + k};
    return {data + k * stride, stride};
  }
};

// K rows of `columns` columns, from row `first` on, in whole groups, kBlocks blocks of them side by
// side: to[i * block_stride][k][lane] = b[first + k][(block + i) * kLanes + lane], zeros past the
// last row and column.
template <int kBlocks, typename E>
void pack_columns(const OperandRows<E>& b, int64_t first, int64_t K, int64_t columns, int64_t block,
                  E* to, int64_t block_stride = 0) {
  using Op = Operand<E>;
  constexpr int kLanes = Vec<sum_t<E>>::kLanes;
  const int last = lanes_of<sum_t<E>>(block + kBlocks - 1, columns);
  for (int64_t k = 0; k < K; k += Op::kGroup, to += Op::kElements) {
    const E* rows[Op::kGroup];
#pragma GCC unroll 2
    for (int i = 0; i < Op::kGroup; ++i)
      rows[i] = k + i < K ? b.at(first + k + i) + block * kLanes : nullptr;
#pragma GCC unroll 16
    for (int j = 0; j < kBlocks; ++j) {
      Op::pack(rows, j + 1 < kBlocks ? kLanes : last, to + j * block_stride);
#pragma GCC unroll 2
      for (int i = 0; i < Op::kGroup; ++i) {
        if (rows[i] != nullptr) rows[i] += kLanes;
      }
    }
  }
}

// A right-hand operand of a plain product. Block i starts at data + i * block_stride; its vector
// for the group of k at a further k / kGroup * k_stride. All kLanes lanes of the last block can be
// read.
template <typename E>
struct Columns {
  const E* data;
  int64_t k_stride;
  int64_t block_stride;
  bool from_memory = false;  // comes_from_memory in tile.h

  const E* at(int64_t block, int64_t k = 0) const {
    return data + block * block_stride + k / Operand<E>::kGroup * k_stride;
  }

  static Columns packed(const E* data, int64_t K) {
    return {data, Operand<E>::kElements, depth_of<E>(K) * Vec<sum_t<E>>::kLanes};
  }
  static Columns in_place(const E* data, int64_t stride) {
    static_assert(Operand<E>::kGroup == 1);
    return {data, stride, Vec<E>::kLanes};
  }
};

// Blocks are packed side by side, as many as have this many bytes in a row. A block by itself would
// be half a cache line of rows far apart, which by the next block would be gone (AVX2, w_hh of an
// LSTM, H = 512 0.60 ms and 0.43, H = 1024 5.3 and 2.1; half as many bytes 0.54 and 2.5, twice as
// many, or rows called for ahead, no faster).
constexpr int kBytesTogether = 256;

// K rows from row `first` on, some blocks of their columns, to where Columns::packed(to, K) has the
// first of them.
template <typename E, int kTogether = kBytesTogether / (Vec<sum_t<E>>::kLanes * sizeof(E))>
void pack_panels(const OperandRows<E>& b, int64_t first, int64_t K, int64_t columns, Range blocks,
                 E* to) {
  const int64_t stride = Columns<E>::packed(to, K).block_stride;
  for (; blocks.size() >= kTogether; blocks.begin += kTogether, to += kTogether * stride)
    pack_columns<kTogether>(b, first, K, columns, blocks.begin, to, stride);
  if constexpr (kTogether > 1) pack_panels<E, kTogether / 2>(b, first, K, columns, blocks, to);
}

// Blocks of the columns of a matrix, K rows deep, to where Columns::packed(to, K) has them.
template <typename E>
void pack_blocks(const E* rows, int64_t columns, int64_t K, Range blocks, E* to) {
  pack_panels<E>({rows, columns}, 0, K, columns, blocks,
                 to + blocks.begin * Columns<E>::packed(to, K).block_stride);
}
