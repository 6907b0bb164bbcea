// The one inner product of the library: a tile of rows times panels of packed columns, summed in
// registers. The forward step, the backward step and the large products are all made of it.

// Rows and blocks of a tile. Its unit is a row of sums, a few vectors: those of the gates of a
// block of units, or one. As many as the registers hold of what lies side by side in a panel, rows
// first, since every row more is one more use of each loaded column.
constexpr int kTileRows = 6;

constexpr int tile_rows(int vectors) {
  const int rows = kTileSums / vectors_abreast(vectors);
  return rows < kTileRows ? rows : kTileRows;
}

// Tiles of so many rows.
constexpr int64_t tiles_of(int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}

// Blocks side by side for a tile of `rows` rows.
constexpr int tile_blocks(int rows, int sums) {
  const int blocks = kTileSums / (rows * sums);
  return blocks >= 4 ? 4 : blocks >= 2 ? 2 : 1;
}

// Whether the sums of a tile are more than the registers hold.
constexpr bool exceeds_registers(int rows, int blocks, int sums) {
  return rows * blocks * sums > kTileSums;
}

// Independent chains of additions wanted in flight: 4 cycles of latency times 2 a cycle.
constexpr int kChains = 8;

// The left-hand operand of a tile of R rows: the group of elements from k on of row r, in every
// lane; `last` of one that the row ends in. Rows lie anywhere,
template <typename E, int R>
struct RowsAnywhere {
  using Op = Operand<E>;
  const E* row[R];
  FUSED_RNN_INLINE typename Op::V at(int r, int64_t k) const { return Op::broadcast(row[r] + k); }
  FUSED_RNN_INLINE typename Op::V last(int r, int64_t k, int count) const {
    return Op::broadcast(row[r] + k, count);
  }
  FUSED_RNN_INLINE RowsAnywhere from(int64_t k) const {
    RowsAnywhere rest;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) rest.row[r] = row[r] + k;
    return rest;
  }
};

// or they are neighbouring columns of a matrix, which is thus read as its transpose. Its rows are
// of whole groups: element k of column r is column[(k / kGroup * stride + r) * kGroup + k %
// kGroup].
template <typename E>
struct RowsOfTranspose {
  using Op = Operand<E>;
  const E* column;
  int64_t stride;
  FUSED_RNN_INLINE typename Op::V at(int r, int64_t k) const {
    return Op::broadcast(column + k * stride + r * Op::kGroup);
  }
  FUSED_RNN_INLINE typename Op::V last(int r, int64_t k, int) const { return at(r, k); }
};

// Pairs of units of k, as many as K holds, every other pair backwards: 0 1, 3 2, 4 5, 7 6.
//
// The processor guesses where each load instruction will read next from the distance of its last
// two reads. Where weights are read once, as fast as they come, those guesses ask for lines that
// are on their way already, and L1 takes in 33 bytes a cycle for 48 without them (Zen 5, 1 MB forth
// and back: 137 GB/s and 200). The distances of this order alternate, and it makes none.
template <int64_t kUnit>
class InTurns {
 public:
  FUSED_RNN_INLINE explicit InTurns(int64_t K) : left_(K) {}
  FUSED_RNN_INLINE bool has_pair() const { return left_ >= 2 * kUnit; }
  FUSED_RNN_INLINE int64_t first() const { return k_; }
  FUSED_RNN_INLINE int64_t second() const { return k_ + way_; }
  FUSED_RNN_INLINE void next() {
    k_ += 2 * kUnit + way_;
    way_ = -way_;
    left_ -= 2 * kUnit;
  }
  // Where the pairs end.
  FUSED_RNN_INLINE int64_t end() const { return way_ < 0 ? k_ + way_ : k_; }

 private:
  int64_t left_;
  int64_t k_ = 0;
  int64_t way_ = kUnit;
};

// Products of up to so many rows, and at least so deep, go through k in turns (less deep ones are
// up to 6 % slower by it).
constexpr int kMostInTurns = kSimdBytes == 64 ? 4 : 2;
constexpr int64_t kLongInTurns = 128;
// Not so where the right-hand operand comes from memory, as one of more than this many bytes does
// in part (of 8 to 10 MB LSTMs lose 2 %, GRUs gain 5): there the processor's guesses are what
// fetches it in time.
constexpr int64_t kFromMemory = 8 << 20;

// Whether an operand of so many columns, K deep, does.
template <typename E>
constexpr bool comes_from_memory(int64_t K, int64_t columns) {
  return K * columns * static_cast<int64_t>(sizeof(E)) > kFromMemory;
}

// sum[r][b][map(v)] += sum over k of
//     a.at(r, k) * panel[b * block_stride + k * k_stride + v / kAbreast * part_stride
//                        + v % kAbreast lanes]
//
// k counts groups in this formula; K and the strides count elements. Map says which of kSums sums
// the v-th vector of the panel adds to. Where the tile has fewer sums than the additions that the
// machine keeps in flight, k is cut into interleaved parts.
// `from_memory` is what comes_from_memory says of all panels together.
template <typename Map, int R, int NB, int kSums, typename E, typename Rows>
FUSED_RNN_INLINE void multiply(Vec<sum_t<E>> (&sum)[R][NB][kSums], const Rows& a, int64_t K,
                               const E* panel, int64_t k_stride, int64_t block_stride,
                               int64_t part_stride = 0, bool from_memory = false) {
  using Op = Operand<E>;
  using T = sum_t<E>;
  constexpr int kGroup = Op::kGroup;
  constexpr int kElements = Op::kElements;
  constexpr int NV = Map::kVectors;
  constexpr int kAbreast = Map::kAbreast;
  constexpr int kUsed = R * NB * NV;
  constexpr int kParts = kUsed * 2 < kChains && kUsed * 4 <= kTileSums ? 4
                         : kUsed < kChains && kUsed * 2 <= kTileSums   ? 2
                                                                       : 1;

  const auto offset = [&](int b, int v) __attribute__((always_inline)) {
    return b * block_stride + v / kAbreast * part_stride + v % kAbreast * kElements;
  };
  const bool in_turns = R <= kMostInTurns && K >= kLongInTurns && !from_memory;
  int64_t k = 0;
  if constexpr (kParts == 1) {
    const auto step = [&](const E* panel, auto&& group) __attribute__((always_inline)) {
      typename Op::V column[NB][NV];
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) column[b][v] = Op::load(panel + offset(b, v));
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename Op::V x = group(r);
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v)
            sum[r][b][Map::at(v)] = multiply_add(x, column[b][v], sum[r][b][Map::at(v)]);
        }
      }
    };
    const auto visit = [&](int64_t k) __attribute__((always_inline)) {
      step(panel + k / kGroup * k_stride,
           [&](int r) __attribute__((always_inline)) { return a.at(r, k); });
    };
    if (in_turns) {
      InTurns<kGroup> turns(K);
      for (; turns.has_pair(); turns.next()) {
        visit(turns.first());
        visit(turns.second());
      }
      k = turns.end();
      panel += k / kGroup * k_stride;
    }
    for (; k + kGroup <= K; k += kGroup, panel += k_stride)
      step(panel, [&](int r) __attribute__((always_inline)) { return a.at(r, k); });
    if constexpr (kGroup > 1) {
      const int rest = static_cast<int>(K - k);
      if (rest > 0)
        step(panel, [&](int r) __attribute__((always_inline)) { return a.last(r, k, rest); });
    }
  } else {
    Vec<T> part[kParts][R][NB][NV];
#pragma GCC unroll 8
    for (int p = 0; p < kParts; ++p) {
#pragma GCC unroll 8
      for (int i = 0; i < kUsed; ++i) (&part[p][0][0][0])[i] = Vec<T>::zero();
    }
    const auto step = [&](int p, const E* panel, auto&& group) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename Op::V x = group(r);
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) {
            const typename Op::V column = Op::load(panel + offset(b, v));
            part[p][r][b][v] = multiply_add(x, column, part[p][r][b][v]);
          }
        }
      }
    };
    const auto all_parts = [&](int64_t k, const E* panel) __attribute__((always_inline)) {
#pragma GCC unroll 8
      for (int p = 0; p < kParts; ++p) {
        step(p, panel + p * k_stride,
             [&](int r) __attribute__((always_inline)) { return a.at(r, k + p * kGroup); });
      }
    };
    if (in_turns) {
      InTurns<kParts * kGroup> turns(K);
      for (; turns.has_pair(); turns.next()) {
        all_parts(turns.first(), panel + turns.first() / kGroup * k_stride);
        all_parts(turns.second(), panel + turns.second() / kGroup * k_stride);
      }
      k = turns.end();
      panel += k / kGroup * k_stride;
    }
    for (; k + kParts * kGroup <= K; k += kParts * kGroup, panel += kParts * k_stride)
      all_parts(k, panel);
    for (; k + kGroup <= K; k += kGroup, panel += k_stride)
      step(0, panel, [&](int r) __attribute__((always_inline)) { return a.at(r, k); });
    if constexpr (kGroup > 1) {
      const int rest = static_cast<int>(K - k);
      if (rest > 0)
        step(0, panel, [&](int r) __attribute__((always_inline)) { return a.last(r, k, rest); });
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) {
          Vec<T> total = part[0][r][b][v];
#pragma GCC unroll 8
          for (int p = 1; p < kParts; ++p) total = total + part[p][r][b][v];
          sum[r][b][Map::at(v)] = sum[r][b][Map::at(v)] + total;
        }
      }
    }
  }
}

// The same in kPieces pieces of k, with a call of meanwhile(piece) before each: memory that is
// wanted after the product is called for a little at a time. All at once, those calls would take
// every buffer that waits for a cache line, and the product would wait behind them.
template <typename Map, int kPieces, int R, int NB, int kSums, typename E, typename Meanwhile>
FUSED_RNN_INLINE void multiply_in_pieces(Vec<sum_t<E>> (&sum)[R][NB][kSums],
                                         const RowsAnywhere<E, R>& a, int64_t K, const E* panel,
                                         int64_t k_stride, int64_t block_stride, bool from_memory,
                                         const Meanwhile& meanwhile) {
  constexpr int kGroup = Operand<E>::kGroup;
  const int64_t length = K / (kPieces * kGroup) * kGroup;
  int64_t begin = 0;
  for (int piece = 0; piece < kPieces; ++piece) {
    const int64_t end = piece + 1 < kPieces ? begin + length : K;
    meanwhile(piece);
    multiply<Map>(sum, a.from(begin), end - begin, panel + begin / kGroup * k_stride, k_stride,
                  block_stride, 0, from_memory);
    begin = end;
  }
}

// N vectors of a panel, the v-th for the v-th sum.
template <int N>
struct InOrder {
  static constexpr int kVectors = N;
  static constexpr int kAbreast = N;
  static constexpr int at(int v) { return v; }
};

// Tiles of up to this many rows x blocks are finished in registers.
constexpr int kFinishedInRegisters = 2;

// Where a step activates some sums by themselves, it does so for all of the tile first. A cell's
// formula is one long chain of operations; the processor sees about two at a time if each is
// computed to its end, and many if they are taken stage by stage (AVX2, LSTM H = 32, T = 10, B =
// 51: 123 us and 109, GRU 76 and 66).
template <int kSums, typename T, typename Step>
__attribute__((noinline)) void finish_stored(Step& step, int64_t row, int64_t block, int rows,
                                             int blocks, T* stored) {
  constexpr int kUnit = kSums * Vec<T>::kLanes;
  const auto load = [](const T* from, Vec<T>(&sum)[kSums]) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int s = 0; s < kSums; ++s) sum[s] = Vec<T>::load(from + s * Vec<T>::kLanes);
  };
  if constexpr (Step::kActivates) {
    for (int i = 0; i < rows * blocks; ++i) {
      Vec<T> sum[kSums];
      load(stored + i * kUnit, sum);
      step.activate(sum);
#pragma GCC unroll 8
      for (int s = 0; s < kSums; ++s) sum[s].store(stored + i * kUnit + s * Vec<T>::kLanes);
    }
  }
  for (int r = 0; r < rows; ++r) {
    for (int b = 0; b < blocks; ++b, stored += kUnit) {
      Vec<T> sum[kSums];
      load(stored, sum);
      step.finish(row + r, block + b, sum);
    }
  }
}

// Calls step.finish(row, block, sums) for every row and block of a tile. A small tile's sums never
// leave the registers, since its latency is what a step costs; those of a larger one pass through
// L1, where one loop finishes them: unrolling each cell's formula over all of up to 24 vectors
// made three times the code, and as much longer to compile.
template <int R, int NB, int kSums, typename T, typename Step>
FUSED_RNN_INLINE void finish_tile(Step& step, int64_t row, int64_t block,
                                  Vec<T> (&sum)[R][NB][kSums]) {
  if constexpr (R * NB <= kFinishedInRegisters) {
    if constexpr (Step::kActivates) {
#pragma GCC unroll 8
      for (int i = 0; i < R * NB; ++i) step.activate(sum[i / NB][i % NB]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < R * NB; ++i) step.finish(row + i / NB, block + i % NB, sum[i / NB][i % NB]);
  } else {
    alignas(64) T stored[R * NB * kSums * Vec<T>::kLanes];
    T* to = stored;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
        for (int s = 0; s < kSums; ++s, to += Vec<T>::kLanes) sum[r][b][s].store(to);
      }
    }
    finish_stored<kSums>(step, row, block, R, NB, static_cast<T*>(stored));
  }
}

// f.tile<R, width>(row, block) for a width known at run time.
template <int kSums, int R, typename F>
FUSED_RNN_INLINE void tile_of_rows(int width, int64_t row, int64_t block, F& f) {
  constexpr int kMost = tile_blocks(R, kSums);
  if constexpr (kMost >= 4) {
    if (width == 4) return f.template tile<R, 4>(row, block);
  }
  if constexpr (kMost >= 2) {
    if (width == 2) return f.template tile<R, 2>(row, block);
  }
  f.template tile<R, 1>(row, block);
}

template <int kSums, int R, typename F>
FUSED_RNN_INLINE void tile_of(int rows, int width, int64_t row, int64_t block, F& f) {
  if constexpr (R > 1) {
    if (rows < R) return tile_of<kSums, R - 1>(rows, width, row, block, f);
  }
  tile_of_rows<kSums, R>(width, row, block, f);
}

// Calls f.tile<R, NB>(row, block) so that tiles of R rows and NB blocks cover rows x blocks, where
// a block is kSums vectors of sums a row. Blocks are the outer loop: a panel stays in cache while
// the rows pass by. Rows are cut evenly, so that no thin tile remains at the end. kVectors is how
// many vectors of a panel a product with it reads at each k.
//
// A loop over steps goes through the blocks forth and back in turn: what the caches still hold of
// panels that are larger than they are is then used first, not last (B = 1, GRU H = 512, T = 25:
// 1.14 ms and 0.93; LSTM H = 256, T = 50: 0.54 and 0.46, H = 512 and above up to 4 % less). The
// tiles are the same both ways, and with them the results to the last bit: narrower ones are those
// of the last blocks.
template <int kSums, int kVectors = kSums, typename F>
FUSED_RNN_INLINE void for_each_tile(int64_t rows, Range blocks, F& f, bool back = false) {
  constexpr int kMostRows = tile_rows(kVectors);
  if (rows <= 0) return;
  const int64_t tiles = (rows + kMostRows - 1) / kMostRows;
  const int most = static_cast<int>((rows + tiles - 1) / tiles);
  const int widest = tile_blocks(most, kSums);
  while (blocks.size() > 0) {
    int width = widest;
    if (back) {
      const auto rest = static_cast<int>(blocks.size() % widest);
      if (rest > 0) width = rest & -rest;
    } else {
      while (width > blocks.size()) width /= 2;
    }
    const int64_t block = back ? blocks.end - width : blocks.begin;
    for (int64_t i = 0; i < tiles; ++i) {
      const Range part = share(rows, tiles, i);
      tile_of<kSums, kMostRows>(static_cast<int>(part.size()), width, part.begin, block, f);
    }
    (back ? blocks.end : blocks.begin) += back ? -width : width;
  }
}
