// The forward pass of one layer in one direction: the time loop.
//
// The gates of a block of kLanes units stay together in a packed panel, so that a tile of rows x
// units x gates holds everything a cell needs: the cell is the epilogue of the product, applied to
// sums that are still in registers or L1. The product runs over x, then over h.
//
// Where a thread has only a few rows, reading w_ih again each step costs more than writing the sums
// once: there the input products of many steps are one product ahead of them.
//
// Packing reads and writes every weight once, which one step of few rows, or few steps of one row,
// would not earn back: there the weights are read where they are, unless the caller has them
// packed.

// One step of up to this many rows reads the weights in place, and of up to kRowsInPlaceWide rows
// where they have more than kWideBytes bytes (LSTM H = 512: 8 rows 0.25 ms against 0.74 with a load
// of a weight for each row, 16 rows 0.45 against 0.65 with panels, 32 rows the same; H = 128: 16
// rows 44 us against 34 with panels).
constexpr int64_t kRowsInPlace = 8;
constexpr int64_t kRowsInPlaceWide = 32;
constexpr int64_t kWideBytes = 2 << 20;
// One row reads a w_hh of more than this many bytes in place at every step where several threads
// share what memory gives, and packing would write as much as it reads (two threads, T = 50, in
// place and from panels: GRU H = 1536, 28 MB, 12.2 ms and 11.1, LSTM H = 1536, 38 MB, 18.8
// and 19.3, GRU H = 2048, 50 MB, 36.3 and 39.5, LSTM 60 and 67; both directions side by side, LSTM
// H = 1536, T = 21 28.4 and 31.3).
constexpr int64_t kInPlaceOfThreads = 32 << 20;
// Of up to this many steps one row reads both weights in place, w_ih unless it has more than
// kLanesBytes bytes (AVX2, two steps of LSTM H = 64: 11.2 us and 5.7, H = 128: 46 and 21; four
// steps of H = 256: 165 us and 123, of H = 512 1.10 ms and 0.54),
constexpr int64_t kStepsInPlace = 4;
// and of up to so many w_hh, of so many bytes: rows come about as fast as panels do, and packing
// costs as much as some steps (AVX-512, us, from panels and in place: LSTM H = 128, T = 16 42.8 and
// 39.2, T = 32 74.5 and 74.7; H = 256, T = 25 244 and 229, T = 40 357 and 347; H = 512, T = 8 502
// and 459, T = 40 1766 and 1755; H = 768, T = 32 3900 and 3540; H = 1024, T = 32 7740 and 6830; GRU
// H = 256, T = 16 121 and 108, H = 512, T = 40 1264 and 1294, RNN 373 and 334; H = 64, T = 16 12.1
// and 14.0; of more than 24 MB, ms, LSTM H = 1536, T = 16 13.1 and 12.8, T = 24 17.2 and 18.0, T =
// 50 31.9 and 35.7, GRU 21.2 and 23.9. AVX2, LSTM H = 512: T = 16 2.9 ms and 1.9, T = 50 6.3
// and 7.2; of 81 MB, for which memory is allocated at every call, AVX-512, LSTM H = 2304, T = 21
// 46.3 ms and 42.8, T = 40 81.6 and 81). `wide` are weights of more than kWideBytes.
constexpr int64_t steps_in_place(int64_t hh_bytes, bool wide) {
  if (kSimdBytes < 64) return wide ? 16 : kStepsInPlace;
  constexpr auto kept = static_cast<int64_t>(Workspace::kKept);
  return hh_bytes > kept        ? 45
         : hh_bytes > 24 << 20  ? 20
         : hh_bytes > 8 << 20   ? 32
         : hh_bytes >= 1 << 20  ? 40
         : hh_bytes > 128 << 10 ? 16
                                : kStepsInPlace;
}
// Of one row, or of two where their tile is but a block, up to this many vectors of units are
// finished together, which hides the latency of a cell's formula (AVX2, T = 60: one row GRU H = 32
// 14.0 us and 12.5, LSTM H = 20 14.7 and 11.6; 4 or 16 vectors: no difference; two rows LSTM H = 32
// 60 us and 40, T = 25, H = 256 1.36 ms and 0.83, GRU H = 32 34 us and 30).
constexpr int kTogether = 8;
// One row of an LSTM or a GRU reads a w_hh (a thread its part) of more than kL1Bytes, as much as L1
// has, and up to kNearBytes a panel at a time from end to end: of these bytes L1 still holds the
// most when the next step comes, and of few streams the machine's prefetchers make the most. From
// further away panels side by side come as fast or faster, and panels in two parts (AVX2, LSTM) and
// those of RNNs, one vector a block, always do. Side by side and from end to end, T = 100: LSTM H =
// 128 206 us and 201, H = 192 399 and 403, H = 256 845 and 809, H = 512 4670 and 4470, H =
// 1024 20.2 ms and 20.9, GRU H = 128 155 and 146, H = 192 293 and 312, H = 512 3390 and 3240; of 48
// KB or less, T = 50, LSTM H = 48 11.7 and 12.0, GRU H = 64 13.8 and 14.7. With vectors
// of 32 bytes more than 256 KB were not timed since k comes in turns.
constexpr int64_t kL1Bytes = 48 << 10;
constexpr int64_t kNearBytes = kSimdBytes == 64 ? 8 << 20 : 256 << 10;
// At most this many rows of a thread take their input products ahead of the steps,
constexpr int64_t kRowsAhead = 4;
// if they have more inputs than this: the products of a few do not wait for h, so they fill the
// time in which the last step's cells end, and their sums need not be written and read again (T =
// 60, ahead and not, us: I = 1, B = 1 LSTM H = 32 8.1 and 7.8, H = 64 23.5 and 22.9, H = 128 92.2
// and 92.4, GRU H = 32 7.2 and 6.8, RNN 4.4 and 4.3, B = 4 LSTM H = 32 20.2 and 18.9; I = 8, B = 1
// LSTM H = 32 8.8 and 8.5, H = 64 24.8 and 26.4, GRU H = 32 7.7 and 7.3; I = 32, H = 32 the same,
// RNN, I = 64, H = 128 22.8 and 31.6),
constexpr int64_t few_inputs(int64_t hh_bytes) {
  if (kSimdBytes < 64) return 0;  // not timed, nor are float64 and RNNs of 2 to 8 inputs
  return hh_bytes <= kL1Bytes / 2 ? 8 : 1;
}
// or this many where the weights together have more than kBeyondCachesBytes bytes: those do not
// stay in L3 from step to step, and products ahead of the steps halve what every step must bring
// from memory (T = 25: LSTM H = 1024, B = 8 25 ms against 32; H = 832, 22 MB, B = 32 40.5
// against 44.7, B = 8 12.4 against 15.4, GRU H = 1024, 25 MB, 45.3 against 50.8 and 15.2
// against 20.1). Below it, writing the sums and reading them again costs more (LSTM H = 640 22.2 ms
// against 21.4, GRU H = 768 24.9 against 23.7; LSTM H = 768, 19 MB, 34.9 against 35.9 on one
// thread, 16.8 against 15.9 on two).
constexpr int64_t kRowsAheadOfMemory = 64;
constexpr int64_t kBeyondCachesBytes = 20 << 20;
// There a tile calls for its share of the next block's panel while its own product runs, if it has
// so many rows (AVX-512, B = 32: LSTM H = 1024 59.6 ms and 57.5, H = 832 39.0 and 37.7, GRU 43.3
// and 41.7; where the weights stay in L3 1 % slower, B = 8 12 % and more, in L2 up to 23 %),
constexpr int kFewestThatCall = 3;
// in so many pieces of the product (half as many up to 3 % slower, a quarter up to 13 %).
constexpr int kPiecesOfCalls = 64;
// Weights of more than this many bytes, which have left L2 since the last call and in part L3, are
// packed in passing: a block at a time, just before its panels are first used, while the tiles of
// the block before it call for what that reads and writes. Packing takes 80 us for 4 MB that are in
// L3, and 240 where all of it goes to and from memory; what can be hidden is as much as the
// products take meanwhile (before all products and in passing, T = 25, ms: LSTM H = 512, B = 4 2.05
// and 1.93, B = 32 13.56 and 13.15, H = 1024, B = 8 20.0 and 18.1, B = 32 58.1 and 57.5, GRU H =
// 1024, B = 8 15.2 and 13.2, B = 32 45.4 and 43.5; of less, LSTM H = 320, T = 80, B = 8 and H =
// 256, T = 50, B = 4 up to 1 % slower).
constexpr int64_t kPackedInPassing = 4 << 20;
// Bytes of sums that the input products of a chunk of steps aim at, half of L2, and the fewest
// steps that make such a product worth while.
constexpr int64_t kAheadSums = 512 << 10;
constexpr int64_t kFewestAhead = 8;
// Where all steps together have up to so many bytes of sums, one product makes them, a few blocks
// at a time, and what it reads of w_ih is packed just before, to stay in L2 (T = 25: LSTM H = 1024,
// B = 4 13.6 ms and 12.1, H = 512 2.14 and 2.11, GRU H = 512, B = 1 0.91 and 0.89; two threads,
// LSTM H = 1024, B = 4 14 % less, the others as before).
constexpr int64_t kAheadAtOnce = 2 << 20;
// The lanes of those products are units, with w_ih packed, or, where a w_ih of more than this many
// bytes would be packed for a few rows, rows of x, with x packed instead. Packing 4 MB takes as
// long as the products of 12 rows, which lanes without a row lose again (LSTM, I = H = 512, T =
// 25: 1.44 ms and 1.37, T = 50 the same; GRU 1.04 and 1.08); packing 16 MB, of 24 rows (H = 1024, T
// = 25: 7.5 ms and 6.5).
constexpr int64_t kLanesBytes = 8 << 20;
// Of up to kFewRowsAhead rows in all that is so from this many bytes on (LSTM I = H = 512, B = 1,
// AVX2: T = 10 2.1 ms and 1.8, T = 25 3.02 and 2.88).
constexpr int64_t kLanesBytesFew = 3 << 20;
constexpr int64_t kFewRowsAhead = 32;
// A few rows: all of them in this many blocks of lanes side by side, so that w_ih is read once
// (I = H = 1024, B = 1: T = 50 12.2 ms and 11.5, T = 100 22.4 and 22.0; B = 8, T = 25: 20.6 and
// 21.9),
constexpr int kLanesAbreast = 4;
// or in up to so many readings of a w_ih of more than this many bytes (I = H = 1536: T = 50, B = 1
// 46 ms and 42, B = 4 74 and 68; T = 25, B = 8 57 and 53).
constexpr int64_t kReadingsInPlace = 4;
constexpr int64_t kReadAgainBytes = 24 << 20;

// Without an h0 the first step needs no product with w_hh, if that is finite. Packing looks, where
// such a product is more than the looking: rows times weights of more than this many bytes (LSTM, H
// = 32: T = 60, B = 1 10.3 us and 10.4, T = 20, B = 4 11.5 both; T = 10, B = 51 50.2 and 48.8; H =
// 512, T = 25, B = 4 2.35 ms and 2.30; H = 128, T = 1, B = 32 50 us and 34).
constexpr int64_t kWorthALook = 64 << 10;

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

// Where one row of a step reads and writes.
template <typename E>
struct ForwardRow {
  using T = sum_t<E>;

  const E* x;       // [I]
  const E* x_next;  // the row's x in the next step; x itself where it has none
  const T* ahead;   // input product and biases [blocks][G][kLanes], or null
  const E* h_prev;
  const T* c_prev;
  E* h;      // [H], of `out` or, with a projection, of the row to project
  T* c;      // [H]
  T* state;  // [H]: h before it was rounded, where the cell reads it and E is not T
  T* gates;  // [saved, H] or null
};

template <typename Cell, typename E>
struct ForwardPlan {
  using T = sum_t<E>;
  // h is a state beside what `out` holds of it.
  static constexpr bool kKeepsState = Cell::kReadsPrevious && !std::is_same_v<E, T>;
  using ProductsAhead = ProductsAsLanes<E, kLanesAbreast * Vec<T>::kLanes>;
  using Packed = PackedWeights<Cell, E>;
  // Tiles can call for memory: of LSTMs and GRUs, where 32 registers hold a tile's sums.
  static constexpr bool kTilesCall =
      Cell::kSums > 1 && !exceeds_registers(kTileRows, 1, Cell::kSums);

  const ForwardArgs<E>& args;
  Neighbours neighbours;
  int64_t blocks = 0;       // of units
  bool x_in_place = false;  // the weights are read where they are, not from panels
  bool h_in_place = false;
  bool beyond_caches = false;  // the weights do not stay in L3
  bool x_from_memory = false;  // w_ih comes from memory (comes_from_memory in tile.h),
  bool h_from_memory = false;  // w_hh does
  bool near = false;           // one row reads w_hh a panel at a time
  bool ahead = false;          // input products before the steps,
  bool x_as_lanes = false;     // whose lanes are rows of x instead of units
  bool x_by_block = false;     // w_ih is packed a few blocks at a time, just before
  int64_t steps_ahead = 0;
  bool packs_in_passing = false;  // panels are made a block at a time, as they are first used

  Packed packed = {};
  E* unprojected = nullptr;  // [B, H]
  T* states = nullptr;       // [B, H]
  T* zeros = nullptr;        // [H]
  E* none = nullptr;         // [H]: zeros that stand for an h0
  // Parts of [steps_ahead * B][blocks][G][kLanes], where each thread has its rows or its blocks:
  T* ahead_sums = nullptr;
  // Of each thread:
  ForwardRow<E>* rows = nullptr;  // [B]
  const E** ahead_x = nullptr;    // [steps_ahead * B]
  E* x_panels = nullptr;          // as packed.x, of the blocks of a tile
  E* x_lanes = nullptr;           // [blocks of rows][I][kLanes]
  E* h_lanes = nullptr;           // [blocks of rows][O][kLanes]

  int64_t ahead_stride() const { return blocks * Cell::kGates * Vec<T>::kLanes; }

  // Some blocks without the one that is a tail. What tiles call for is whole panels; a tail's tiles
  // call for none.
  Range without_tail(Range some) const {
    if (packed.tail > 0 && some.end == blocks && some.size() > 0) --some.end;
    return some;
  }
};

template <typename Cell, typename E, int R>
struct SumsOfFewRows;
template <typename Cell, typename E, int V>
struct TailOfStep;
template <typename Cell, typename E, int V>
struct TailOfProducts;

// A thread's part of a step: rows x blocks of units.
template <typename Cell, typename E>
struct ForwardStep {
  using T = sum_t<E>;
  using Plan = ForwardPlan<Cell, E>;
  using Packed = typename Plan::Packed;

  // Of all steps:
  const Plan& plan;
  const ForwardRow<E>* rows;
  Range blocks;
  int64_t I;              // 0 where the input products are ahead
  int64_t lines_a_block;  // cache lines of the next step's x that a block of units calls for
  // Of this one:
  int64_t count = 0;        // of rows
  bool back = false;        // the blocks come in falling order
  bool from_zeros = false;  // h_prev is zeros, of which w_hh makes zeros
  bool packs = false;       // the panels of its blocks, as it comes to them
  CallsAhead calls = {};    // what the tiles of a block call for, where they do

  ForwardStep(const Plan& plan, Range blocks)
      : plan(plan), rows(plan.rows), blocks(blocks), I(plan.ahead ? 0 : plan.args.shape.I) {
    const int64_t lines = (I * static_cast<int64_t>(sizeof(E)) + kCacheLine - 1) / kCacheLine;
    lines_a_block = blocks.size() > 0 ? (lines + blocks.size() - 1) / blocks.size() : 0;
  }

  // Each block of units calls for a part of the next step's x, so that it is there in time.
  // Everything else that a step reads has been in cache before, or follows in memory.
  template <int R, int NB>
  FUSED_RNN_INLINE void call_for_input(int64_t row, int64_t block) const {
    constexpr int64_t kLine = kCacheLine / static_cast<int64_t>(sizeof(E));
    const int64_t first = (block - blocks.begin) * lines_a_block * kLine;
    const int64_t last = first + NB * lines_a_block * kLine;
    for (int64_t i = first; i < last && i < I; i += kLine) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) __builtin_prefetch(rows[row + r].x_next + i);
    }
  }

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    constexpr int kSums = Cell::kSums;
    if constexpr (R > 1) call_for_input<R, NB>(row, block);
    if constexpr (exceeds_registers(R, NB, kSums)) {
      static_assert(NB == 1);
      tile_in_parts<R>(row, block);
    } else {
      if constexpr (NB == 1 && R >= kFewestThatCall && Plan::kTilesCall) {
        if (packs || calls_for_panel(block)) return calling_tile<R>(row, block);
      }
      whole_tile<R, NB>(row, block);
    }
  }

  void run() {
    if constexpr (Plan::kTilesCall) {
      if (packs) return pack_and_run();
    }
    if (count == 1) return plan.near ? few_rows<1, true>() : few_rows<1, false>();
    if constexpr (2 * tile_blocks(2, Cell::kSums) <= kFinishedInRegisters) {
      if (count == 2) return few_rows<2, false>();
    }
    tiles(blocks);
  }

  // All rows, some blocks of units, of which the tail by itself.
  void tiles(Range some) {
    const Range whole = plan.without_tail(some);
    const bool tail = whole.end < some.end;
    if (tail && back) tiles_of_tail();
    for_each_tile<Cell::kSums, Cell::kGates>(count, whole, *this, back);
    if (tail && !back) tiles_of_tail();
  }

  void tiles_of_tail() {
    with_tail<Cell::kGates>(plan.packed.tail, [&](auto vectors) {
      constexpr int V = vectors;
      TailOfStep<Cell, E, V> tail{*this};
      for_each_tile<V>(count, Range{plan.blocks - 1, plan.blocks}, tail);
    });
  }

  // The sums of R rows and a tail of V vectors, `stride` apart.
  template <int R, int V>
  FUSED_RNN_INLINE void sums_of_tail(int64_t row, T* sums, int64_t stride) const {
    constexpr int kLanes = Vec<T>::kLanes;
    const int64_t block = plan.blocks - 1;
    const int units = lanes_of<T>(block, plan.args.shape.H);
    for (int r = 0; r < R; ++r) {
      for (int s = 0; s < Cell::kSums; ++s)
        begin(row + r, block, s).store(sums + r * stride + s * kLanes);
    }
    if (I > 0) {
      add_tail<typename Cell::XMap, V>(rows_of<R>(row, &ForwardRow<E>::x), I,
                                       plan.packed.x + block * Packed::panel(x_size()), units,
                                       plan.x_from_memory, sums, stride);
    }
    if (from_zeros) return;
    add_tail<typename Cell::HMap, V>(rows_of<R>(row, &ForwardRow<E>::h_prev), h_size(),
                                     plan.packed.h + block * Packed::panel(h_size()), units,
                                     plan.h_from_memory, sums, stride);
  }

  // The first step, if panels are packed in passing and it is what uses them first.
  void pack_and_run() {
    static_assert(2 * Cell::kGates + 2 <= CallsAhead::kMost);
    static_assert(tile_rows(Cell::kGates) == kTileRows);
    const Packed& packed = plan.packed;
    const LayerWeights<E>& w = plan.args.weights;
    const SequenceShape& shape = plan.args.shape;
    const bool first_h_is_zeros = from_zeros;
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      packed.pack_x(shape, w, block, packed.x + block * Packed::panel(x_size()));
      packed.pack_h(shape, w, block);
      from_zeros = first_h_is_zeros && packed.zeros_stay({block, block + 1});
      calls.clear();
      if (block + 1 < blocks.end) {
        Packed::call_for_weights(calls, w.w_ih, shape.H, x_size(), block + 1);
        Packed::call_for_weights(calls, w.w_hh, shape.H, h_size(), block + 1);
        calls.add(packed.x + (block + 1) * Packed::panel(x_size()), Packed::panel(x_size()));
        calls.add(packed.h + (block + 1) * Packed::panel(h_size()), Packed::panel(h_size()));
      }
      calls.divide(tiles_of(count), pieces());
      tiles({block, block + 1});
    }
  }

  // A step of R rows: the sums of several blocks, then their cells together.
  template <int R, bool kNear>
  void few_rows() {
    if (R * blocks.size() <= kFinishedInRegisters && plan.without_tail(blocks).end == blocks.end)
      return for_each_tile<Cell::kSums, Cell::kGates>(R, blocks, *this, back);
    for (Range left = blocks; left.size() > 0;) {
      const int64_t some = left.size() < kTogether / R ? left.size() : kTogether / R;
      const int64_t first = back ? left.end - some : left.begin;
      alignas(64) T stored[kTogether * Cell::kSums * Vec<T>::kLanes];
      SumsOfFewRows<Cell, E, R> sums{*this, first, some, stored};
      const Range whole = plan.without_tail({first, first + some});
      if (whole.size() < some) sums.tail();
      if constexpr (kNear) {
        for (int64_t i = 0; i < whole.size(); ++i)
          sums.template tile<R, 1>(0, back ? whole.end - 1 - i : whole.begin + i);
      } else {
        for_each_tile<Cell::kSums, Cell::kGates>(R, whole, sums, back);
      }
      finish_stored<Cell::kSums>(*this, 0, first, R, static_cast<int>(some),
                                 static_cast<T*>(stored));
      (back ? left.end : left.begin) += back ? -some : some;
    }
  }

  template <int R, int NB>
  FUSED_RNN_INLINE void whole_tile(int64_t row, int64_t block) {
    Vec<T> sum[R][NB][Cell::kSums];
    sums_of(row, block, sum);
    finish_tile(*this, row, block, sum);
  }

  template <int R, int NB>
  FUSED_RNN_INLINE void sums_of(int64_t row, int64_t block, Vec<T> (&sum)[R][NB][Cell::kSums]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
        for (int s = 0; s < Cell::kSums; ++s) sum[r][b][s] = begin(row + r, block + b, s);
      }
    }
    multiply<typename Cell::XMap>(
        sum, rows_of<R>(row, &ForwardRow<E>::x), I, plan.packed.x + block * Packed::panel(x_size()),
        Packed::kStride, Packed::panel(x_size()), Packed::part(x_size()), plan.x_from_memory);
    if (from_zeros) return;
    multiply<typename Cell::HMap>(sum, rows_of<R>(row, &ForwardRow<E>::h_prev), h_size(),
                                  plan.packed.h + block * Packed::panel(h_size()), Packed::kStride,
                                  Packed::panel(h_size()), Packed::part(h_size()),
                                  plan.h_from_memory);
  }

  // A tile that calls for its share of what the next block wants. A function of its own, since the
  // pieces of the products take registers from others; sums that h does not add to are left out of
  // its product for the same reason.
  template <int R>
  __attribute__((noinline)) void calling_tile(int64_t row, int64_t block) {
    using V = Vec<T>;
    constexpr int kGates = Cell::kGates;
    static_assert(Packed::kAbreast == kGates);
    if (row == 0 && !packs) list_next_panel(block);
    const auto call = [&](int) __attribute__((always_inline)) { calls.some(); };
    V sum[R][1][Cell::kSums];
    alignas(64) T with_x[R * Cell::kSums * V::kLanes];
    if (I > 0) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int s = 0; s < Cell::kSums; ++s) sum[r][0][s] = begin(row + r, block, s);
      }
      multiply_in_pieces<typename Cell::XMap, kPiecesOfCalls>(
          sum, rows_of<R>(row, &ForwardRow<E>::x), I, plan.packed.x + block * Packed::panel(I),
          Packed::kStride, 0, plan.x_from_memory, call);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int s = 0; s < Cell::kSums; ++s)
          sum[r][0][s].store(with_x + (r * Cell::kSums + s) * V::kLanes);
      }
    }
    const auto begin_h = [&](int r, int s) __attribute__((always_inline)) {
      return I > 0 ? V::load(with_x + (r * Cell::kSums + s) * V::kLanes) : begin(row + r, block, s);
    };
    V with_h[R][1][kGates];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int g = 0; g < kGates; ++g) with_h[r][0][g] = begin_h(r, Cell::HMap::at(g));
    }
    if (!from_zeros) {
      multiply_in_pieces<InOrder<kGates>, kPiecesOfCalls>(
          with_h, rows_of<R>(row, &ForwardRow<E>::h_prev), h_size(),
          plan.packed.h + block * Packed::panel(h_size()), Packed::kStride, 0, plan.h_from_memory,
          call);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int s = 0; s < Cell::kSums; ++s) sum[r][0][s] = begin_h(r, s);
#pragma GCC unroll 8
      for (int g = 0; g < kGates; ++g) sum[r][0][Cell::HMap::at(g)] = with_h[r][0][g];
    }
    finish_tile(*this, row, block, sum);
  }

  // The block that comes next.
  int64_t after(int64_t block) const { return back ? block - 1 : block + 1; }

  bool calls_for_panel(int64_t block) const {
    return plan.beyond_caches && plan.ahead && after(block) >= blocks.begin &&
           after(block) < blocks.end;
  }

  void list_next_panel(int64_t block) {
    calls.clear();
    calls.add(plan.packed.h + after(block) * Packed::panel(h_size()), Packed::panel(h_size()));
    calls.divide(tiles_of(count), pieces());
  }

  // How often a tile makes calls.
  int64_t pieces() const { return kPiecesOfCalls * ((I > 0 ? 1 : 0) + (from_zeros ? 0 : 1)); }

  // Part by part of the panels; the sums of all wait in L1 for the cell.
  template <int R>
  FUSED_RNN_INLINE void tile_in_parts(int64_t row, int64_t block) {
    constexpr int kSums = Cell::kSums;
    alignas(64) T sums[R * kSums * Vec<T>::kLanes];
    const auto x = rows_of<R>(row, &ForwardRow<E>::x);
    const auto h = rows_of<R>(row, &ForwardRow<E>::h_prev);
    [&]<int... P>(Lanes<P...>) __attribute__((always_inline)) {
      (make_part<R, P>(row, block, x, h, sums), ...);
    }(LaneSequence<Cell::kGates / Packed::kAbreast>{});
    finish_stored<kSums>(*this, row, block, R, 1, static_cast<T*>(sums));
  }

  // sums[r][s] of the gates in part kPart of a block's panels. Where x and h add to different sums
  // of a gate, that of x is done first and leaves its registers to that of h.
  template <int R, int kPart>
  FUSED_RNN_INLINE void make_part(int64_t row, int64_t block, const RowsAnywhere<E, R>& x,
                                  const RowsAnywhere<E, R>& h, T* sums) const {
    using V = Vec<T>;
    constexpr int kAbreast = Packed::kAbreast;
    using Gates = InOrder<kAbreast>;
    const auto x_sum = [](int v) { return Cell::XMap::at(kPart * kAbreast + v); };
    const auto h_sum = [](int v) { return Cell::HMap::at(kPart * kAbreast + v); };
    const auto at = [&](int r, int s) { return sums + (r * Cell::kSums + s) * V::kLanes; };
    V sum[R][1][kAbreast];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kAbreast; ++v) sum[r][0][v] = begin(row + r, block, x_sum(v));
    }
    multiply<Gates>(sum, x, I, panel<kPart>(plan.packed.x, x_size(), block), Packed::kStride, 0);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kAbreast; ++v) {
        if (x_sum(v) == h_sum(v)) continue;
        sum[r][0][v].store(at(r, x_sum(v)));
        sum[r][0][v] = begin(row + r, block, h_sum(v));
      }
    }
    if (!from_zeros) {
      multiply<Gates>(sum, h, h_size(), panel<kPart>(plan.packed.h, h_size(), block),
                      Packed::kStride, 0);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kAbreast; ++v) sum[r][0][v].store(at(r, h_sum(v)));
    }
  }

  template <int kPart>
  static const E* panel(const E* panels, int64_t depth, int64_t block) {
    return panels + block * Packed::panel(depth) + kPart * Packed::part(depth);
  }

  int64_t x_size() const { return plan.args.shape.I; }
  int64_t h_size() const { return plan.args.shape.hidden(); }

  template <int R>
  FUSED_RNN_INLINE RowsAnywhere<E, R> rows_of(int64_t row,
                                              const E* ForwardRow<E>::* operand) const {
    RowsAnywhere<E, R> result;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) result.row[r] = rows[row + r].*operand;
    return result;
  }

  // What a sum begins with: the biases, or the input product that has them.
  FUSED_RNN_INLINE Vec<T> begin(int64_t row, int64_t block, int s) const {
    constexpr int kLanes = Vec<T>::kLanes;
    const T* from = plan.packed.bias + (block * Cell::kSums + s) * kLanes;
    if (const T* const ahead = rows[row].ahead; ahead != nullptr) {
#pragma GCC unroll 8
      for (int g = 0; g < Cell::kGates; ++g) {
        if (Cell::XMap::at(g) == s) from = ahead + (block * Cell::kGates + g) * kLanes;
      }
    }
    return Vec<T>::load(from);
  }

  static constexpr bool kActivates = Cell::kActivates;
  static FUSED_RNN_INLINE void activate(Vec<T> (&sum)[Cell::kSums]) { Cell::activate(sum); }

  // Of sums that have been activated.
  FUSED_RNN_INLINE void finish(int64_t row, int64_t block, const Vec<T> (&sum)[Cell::kSums]) {
    using V = Vec<T>;
    const ForwardRow<E>& at = rows[row];
    const int64_t H = plan.args.shape.H;
    const int64_t unit = block * V::kLanes;
    const int n = lanes_of<T>(block, H);
    CellState<T> prev{V::zero(), V::zero()};
    if constexpr (Plan::kKeepsState) {
      prev.h = V::load(at.state + unit, n);
    } else if constexpr (Cell::kReadsPrevious) {
      prev.h = Operand<E>::widened(at.h_prev + unit, n);
    }
    if constexpr (Cell::kHasState) prev.c = V::load(at.c_prev + unit, n);
    V saved[4];
    const CellState<T> next = Cell::update(sum, prev, saved);
    Operand<E>::narrow(next.h, at.h + unit, n);
    if constexpr (Plan::kKeepsState) next.h.store(at.state + unit, n);
    if constexpr (Cell::kHasState) next.c.store(at.c + unit, n);
    if constexpr (Cell::kSaved > 0) {
      if (at.gates != nullptr) {
#pragma GCC unroll 8
        for (int s = 0; s < Cell::kSaved; ++s) saved[s].store(at.gates + s * H + unit, n);
      }
    }
  }
};

// The tiles of kRows rows: sums in registers, stored for `count` blocks from block `first` on.
template <typename Cell, typename E, int kRows>
struct SumsOfFewRows {
  using T = sum_t<E>;

  ForwardStep<Cell, E>& step;
  int64_t first;
  int64_t count;
  T* stored;  // [kRows][count][kSums][kLanes]

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    if constexpr (R == kRows) {
      Vec<T> sum[R][NB][Cell::kSums];
      step.sums_of(row, block, sum);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        T* to = stored + (r * count + block - first) * Cell::kSums * Vec<T>::kLanes;
#pragma GCC unroll 8
        for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
          for (int s = 0; s < Cell::kSums; ++s, to += Vec<T>::kLanes) sum[r][b][s].store(to);
        }
      }
    }
  }

  void tail() {
    constexpr int kUnit = Cell::kSums * Vec<T>::kLanes;
    with_tail<Cell::kGates>(step.plan.packed.tail, [&](auto vectors) {
      step.template sums_of_tail<kRows, vectors>(0, stored + (step.plan.blocks - 1 - first) * kUnit,
                                                 count * kUnit);
    });
  }
};

// The tiles of a tail of V vectors.
template <typename Cell, typename E, int V>
struct TailOfStep {
  ForwardStep<Cell, E>& step;

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    if constexpr (NB == 1) {
      using T = sum_t<E>;
      constexpr int kUnit = Cell::kSums * Vec<T>::kLanes;
      alignas(64) T sums[R * kUnit];
      if constexpr (R > 1) step.template call_for_input<R, 1>(row, block);
      step.template sums_of_tail<R, V>(row, sums, kUnit);
      finish_stored<Cell::kSums>(step, row, block, R, 1, static_cast<T*>(sums));
    }
  }
};

// Products of R rows x and kLanes / R rows of weights that follow each other, each summed in a
// register of its own, lane by lane.
template <int R, typename E>
struct DotProducts {
  using Op = Operand<E>;
  using V = Vec<sum_t<E>>;
  static constexpr int kAbreast = V::kLanes / R;
  // The rows of weights that are read together, and how many vectors of each on end where they do
  // not come in turns. With AVX-512 single rows come faster from L2 that way (LSTMCell H = 128 7.3
  // us and 6.0, H = 512 98 and 83); with AVX2 H = 512 takes 94 us and 102.
  static constexpr int kRead = kAbreast < 8 ? kAbreast : 8;
  static constexpr int kRun = R == 1 && sizeof(V) == 64 ? 4 : 1;

  V sum[V::kLanes];

  FUSED_RNN_INLINE DotProducts() {
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) sum[i] = V::zero();
  }

  // sum[r][j] += w[j] x[r] for the first n rows of w; K long. In turns (tile.h) where weights are
  // read at every step of a sequence, forth and back (H = 512, T = 25 1310 us and 1240), or by rows
  // that share a load (LSTMCell H = 128, B = 8 15.0 and 13.4, H = 512, B = 8 200 and 175; AVX2 26.2
  // and 23.1, 367 and 322); of one row, one step, it is as fast or up to 10 % slower.
  template <bool kInTurns = (R > 1)>
  FUSED_RNN_INLINE void add(const E* w, int n, const E* const* x, int64_t K) {
#pragma GCC unroll 16
    for (int first = 0; first < kAbreast; first += kRead) {
      const E* rows[kRead];
#pragma GCC unroll 16
      for (int j = 0; j < kRead; ++j) rows[j] = w + (first + j < n ? first + j : 0) * K;
      int64_t k = 0;
      if constexpr (kInTurns) {
        InTurns<Op::kElements> turns(K);
        for (; turns.has_pair(); turns.next()) {
          add_at<1>(first, rows, x, turns.first(), Op::kElements);
          add_at<1>(first, rows, x, turns.second(), Op::kElements);
        }
        k = turns.end();
      } else {
        for (; k + kRun * Op::kElements <= K; k += kRun * Op::kElements)
          add_at<kRun>(first, rows, x, k, Op::kElements);
      }
      for (; k + Op::kElements <= K; k += Op::kElements)
        add_at<1>(first, rows, x, k, Op::kElements);
      if (k < K) add_at<1>(first, rows, x, k, static_cast<int>(K - k));
    }
  }

  // The next kVectors vectors of kRead rows of w, each of so many elements.
  template <int kVectors>
  FUSED_RNN_INLINE void add_at(int first, const E* const* rows, const E* const* x, int64_t k,
                               int count) {
    typename Op::V value[R][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v)
        value[r][v] = Op::load(x[r] + k + v * Op::kElements, count);
    }
#pragma GCC unroll 16
    for (int j = 0; j < kRead; ++j) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const typename Op::V weights = Op::load(rows[j] + k + v * Op::kElements, count);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          V& to = sum[r * kAbreast + first + j];
          to = multiply_add(value[r][v], weights, to);
        }
      }
    }
  }

  // w[j] . x[r] in lane r * kAbreast + j.
  FUSED_RNN_INLINE V total() { return sum_lanes(sum); }
};

// A step of up to kRowsInPlaceWide rows with the weights in torch's layout, block of units by
// block. Rows pass by each gate's weights of a block while those are in cache, several at a time
// for each load of a weight; as many as fill vectors become the lanes of products.
template <typename Cell, typename E>
struct InPlace {
  using T = sum_t<E>;
  using V = Vec<T>;
  static constexpr int kLanes = V::kLanes;
  static constexpr int kGates = Cell::kGates;
  static constexpr int kRows = kLanes < 4 ? kLanes : 4;  // that share a load
  static constexpr int kMost = kRowsInPlaceWide;
  // Rows that are worth the transpositions: two vectors of them (AVX2, H = 512: B = 16 LSTM 1.20 ms
  // by dot products and 0.99, GRU 0.81 and 0.63; B = 8 LSTM 0.55 and 0.62), or one of 16 lanes (H =
  // 512, B = 16 LSTM 0.38 and 0.35, GRU 0.29 and 0.27, H = 1024 2.44 and 1.90),
  static constexpr int kFewestLanes = kLanes == 16 ? 16 : 2 * kLanes;
  // where they fill wide vectors by four fifths (AVX-512, LSTM H = 512: B = 20 0.46 and 0.60, B =
  // 24 0.56 and 0.59, B = 28 0.65 and 0.60).
  static bool fill_lanes(int64_t rows) {
    return rows >= kFewestLanes && (kLanes < 8 || 5 * rows >= 4 * kLanes * blocks_of<T>(rows));
  }
  using ByLanes = ProductsAsLanes<E, kMost>;
  static constexpr int64_t kStride = Cell::kSums * kLanes;

  ForwardStep<Cell, E>& step;
  const LayerWeights<E>& w = step.plan.args.weights;
  int64_t H = step.plan.args.shape.H;
  int64_t I = step.plan.args.shape.I;
  int64_t O = step.plan.args.shape.hidden();

  void run() {
    const int64_t rows = step.count;
    const Range blocks = step.blocks;
    if (rows == 1) {
      for (int64_t i = 0; i < blocks.size(); ++i) {
        const int64_t block = step.back ? blocks.end - 1 - i : blocks.begin + i;
        step.plan.ahead ? one_row<true>(block) : one_row<false>(block);
      }
      return;
    }
    const E* x[kMost];
    const E* h[kMost];
    for (int64_t i = 0; i < rows; ++i) {
      x[i] = step.rows[i].x;
      h[i] = step.rows[i].h_prev;
    }
    const bool lanes = fill_lanes(rows);
    if (lanes) {
      ByLanes::pack(x, rows, I, step.plan.x_lanes);
      ByLanes::pack(h, rows, O, step.plan.h_lanes);
    }
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      alignas(64) T sums[kMost * kStride];
      for (int64_t i = 0; i < rows; ++i)
        __builtin_memcpy(sums + i * kStride, step.plan.packed.bias + block * kStride,
                         kStride * sizeof(T));
      if (lanes) {
        by_lanes(block, rows, sums);
      } else {
        dot_products(block, rows, x, h, sums);
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
      products.template add<kAhead>(w.w_hh + (g * H + unit) * O, n, &at.h_prev, O);
      h_sum = h_sum + products.total();
    }
    step.activate(sum);
    step.finish(0, block, sum);
  }

  // Several rows never have their input products ahead, which is for sequences.
  void dot_products(int64_t block, int64_t count, const E* const* x, const E* const* h, T* sums) {
    const int64_t unit = block * kLanes;
    const int n = lanes_of<T>(block, H);
    for (int g = 0; g < kGates; ++g) {
      int64_t i = 0;
      for (; i + kRows <= count; i += kRows)
        gate<kRows>(g, unit, n, x + i, h + i, sums + i * kStride);
      for (; i < count; ++i) gate<1>(g, unit, n, x + i, h + i, sums + i * kStride);
    }
  }

  void by_lanes(int64_t block, int64_t count, T* sums) {
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
      if (apart) add_to(Cell::XMap::at(g));
      products.multiply(w.w_hh + unit * O, O, step.plan.h_lanes, !apart);
      add_to(Cell::HMap::at(g));
    }
  }

  // The sums of a gate for R rows and a block of units.
  template <int R>
  void gate(int g, int64_t unit, int n, const E* const* x, const E* const* h, T* sums) {
    T* const x_sums = sums + Cell::XMap::at(g) * kLanes;
    T* const h_sums = sums + Cell::HMap::at(g) * kLanes;
    constexpr int kAbreast = DotProducts<R, E>::kAbreast;
    for (int first = 0; first < n; first += kAbreast) {
      const int64_t row = g * H + unit + first;
      DotProducts<R, E> products;
      products.add(w.w_ih + row * I, n - first, x, I);
      if (x_sums != h_sums) {
        add<R>(products.total(), x_sums + first);
        products = {};
      }
      products.add(w.w_hh + row * O, n - first, h, O);
      add<R>(products.total(), h_sums + first);
    }
  }

  // sums[r][j] += the lane of row r and unit j
  template <int R>
  static FUSED_RNN_INLINE void add(V products, T* sums) {
    constexpr int kAbreast = DotProducts<R, E>::kAbreast;
    using Units
        [[gnu::vector_size(kAbreast * sizeof(T)), gnu::aligned(sizeof(T)), gnu::may_alias]] = T;
    alignas(64) T lanes[kLanes];
    products.store(lanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Units* const at = reinterpret_cast<Units*>(sums + r * kStride);
      *at += *reinterpret_cast<const Units*>(lanes + r * kAbreast);
    }
  }
};

// The input products of many rows, biases included, kept in the layout of the sums.
template <typename Cell, typename E>
struct InputProducts {
  using T = sum_t<E>;
  using Plan = ForwardPlan<Cell, E>;
  using Packed = typename Plan::Packed;

  // Blocks of a tile of many rows.
  static constexpr int kBlocks = tile_blocks(tile_rows(Cell::kGates), Cell::kGates);
  static_assert(kBlocks == 1 || !Plan::kTilesCall);

  const Plan& plan;
  const E* panels;  // of the blocks from first_block on
  int64_t first_block = 0;
  bool tiles_call = false;
  CallsAhead calls = {};

  InputProducts(const Plan& plan) : plan(plan), panels(plan.packed.x) {}

  // Some blocks of units, of which the tail by itself.
  void run(int64_t rows, Range some) {
    const Range whole = plan.without_tail(some);
    for_each_tile<Cell::kGates>(rows, whole, *this);
    if (whole.end == some.end) return;
    with_tail<Cell::kGates>(plan.packed.tail, [&](auto vectors) {
      constexpr int V = vectors;
      TailOfProducts<Cell, E, V> products{*this};
      for_each_tile<V>(rows, Range{plan.blocks - 1, plan.blocks}, products);
    });
  }

  // The same, with the panels of x packed a few blocks at a time, just before they are used, and,
  // where that is done in passing, those of h behind them.
  void pack_and_run(int64_t rows, Range blocks) {
    const Packed& packed = plan.packed;
    const LayerWeights<E>& w = plan.args.weights;
    const SequenceShape& shape = plan.args.shape;
    const int64_t x_panel = Packed::panel(shape.I);
    const int64_t h_panel = Packed::panel(shape.hidden());
    const bool packs_h = plan.packs_in_passing && packed.packs_h;
    tiles_call = plan.packs_in_passing;
    if (plan.x_by_block) panels = plan.x_panels;
    for (Range some = blocks; some.begin < blocks.end; some.begin = some.end) {
      some.end = some.begin + kBlocks < blocks.end ? some.begin + kBlocks : blocks.end;
      first_block = plan.x_by_block ? some.begin : 0;
      for (int64_t i = 0; i < some.size(); ++i) {
        const int64_t block = some.begin + i;
        packed.pack_x(shape, w, block,
                      plan.x_by_block ? plan.x_panels + i * x_panel : packed.x + block * x_panel);
      }
      if (tiles_call) {
        calls.clear();
        if (packs_h) {
          Packed::call_for_weights(calls, w.w_hh, shape.H, shape.hidden(), some.begin);
          calls.add(packed.h + some.begin * h_panel, h_panel);
        }
        if (some.end < blocks.end) {
          Packed::call_for_weights(calls, w.w_ih, shape.H, shape.I, some.end);
          if (!plan.x_by_block) calls.add(packed.x + some.end * x_panel, x_panel);
        }
        calls.divide(tiles_of(rows), kPiecesOfCalls);
      }
      run(rows, some);
      for (int64_t block = some.begin; packs_h && block < some.end; ++block)
        packed.pack_h(shape, w, block);
    }
  }

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    constexpr int kGates = Cell::kGates;
    if constexpr (!exceeds_registers(R, NB, kGates)) {
      if constexpr (NB == 1 && R >= kFewestThatCall && Plan::kTilesCall) {
        if (tiles_call) return calling_gates<R>(row, block);
      }
      gates<R, NB, 0, kGates>(row, block);
    } else {
      [&]<int... P>(Lanes<P...>) __attribute__((always_inline)) {
        (gates<R, NB, P * Packed::kAbreast, Packed::kAbreast>(row, block), ...);
      }(LaneSequence<kGates / Packed::kAbreast>{});
    }
  }

  template <int R>
  __attribute__((noinline)) void calling_gates(int64_t row, int64_t block) {
    gates<R, 1, 0, Cell::kGates, true>(row, block);
  }

  // kCount gates from the first one on: all of them, or a part of the panel.
  template <int R, int NB, int kFirst, int kCount, bool kCalling = false>
  FUSED_RNN_INLINE void gates(int64_t row, int64_t block) {
    using V = Vec<T>;
    constexpr int kLanes = V::kLanes;
    constexpr int kGates = Cell::kGates;
    const int64_t I = plan.args.shape.I;
    V sum[R][NB][kCount];
#pragma GCC unroll 8
    for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
      for (int g = 0; g < kCount; ++g) {
        const V bias = V::load(plan.packed.bias +
                               ((block + b) * Cell::kSums + Cell::XMap::at(kFirst + g)) * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum[r][b][g] = bias;
      }
    }
    RowsAnywhere<E, R> from;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) from.row[r] = plan.ahead_x[row + r];
    const E* const panel = panels + (block - first_block) * Packed::panel(I) +
                           kFirst / Packed::kAbreast * Packed::part(I);
    if constexpr (kCalling) {
      multiply_in_pieces<Gates<kCount>, kPiecesOfCalls>(
          sum, from, I, panel, Packed::kStride, 0, false,
          [&](int) __attribute__((always_inline)) { calls.some(); });
    } else {
      multiply<Gates<kCount>>(sum, from, I, panel, Packed::kStride, Packed::panel(I),
                              Packed::part(I), plan.x_from_memory && !plan.x_by_block);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      T* to =
          plan.ahead_sums + (row + r) * plan.ahead_stride() + (block * kGates + kFirst) * kLanes;
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) {
#pragma GCC unroll 8
        for (int g = 0; g < kCount; ++g) sum[r][b][g].store(to + (b * kGates + g) * kLanes);
      }
    }
  }

 private:
  // The first N gates of a panel, in order.
  template <int N>
  struct Gates : InOrder<N> {
    static constexpr int kAbreast = Packed::kAbreast;
  };
};

// The tiles of a tail of V vectors.
template <typename Cell, typename E, int V>
struct TailOfProducts {
  using T = sum_t<E>;
  using Packed = PackedWeights<Cell, E>;

  const InputProducts<Cell, E>& products;

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    if constexpr (NB == 1) {
      constexpr int kLanes = Vec<T>::kLanes;
      const ForwardPlan<Cell, E>& plan = products.plan;
      const int64_t I = plan.args.shape.I;
      T* const sums = plan.ahead_sums + row * plan.ahead_stride() + block * Cell::kGates * kLanes;
      for (int g = 0; g < Cell::kGates; ++g) {
        const Vec<T> bias =
            Vec<T>::load(plan.packed.bias + (block * Cell::kSums + Cell::XMap::at(g)) * kLanes);
        for (int r = 0; r < R; ++r) bias.store(sums + r * plan.ahead_stride() + g * kLanes);
      }
      RowsAnywhere<E, R> from;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) from.row[r] = plan.ahead_x[row + r];
      add_tail<InOrder<Cell::kGates>, V>(
          from, I, products.panels + (block - products.first_block) * Packed::panel(I),
          lanes_of<T>(block, plan.args.shape.H), plan.x_from_memory && !plan.x_by_block, sums,
          plan.ahead_stride());
    }
  }
};

// The same of up to kLanesAbreast blocks of rows, from w_ih as it lies.
template <typename Cell, typename E>
void input_products_as_lanes(const ForwardPlan<Cell, E>& plan, int64_t rows, Range blocks) {
  using V = Vec<sum_t<E>>;
  using Products = typename ForwardPlan<Cell, E>::ProductsAhead;
  constexpr int kLanes = V::kLanes;
  const int64_t H = plan.args.shape.H;
  const int64_t I = plan.args.shape.I;
  Products::pack(plan.ahead_x, rows, I, plan.x_lanes);
  for (int64_t block = blocks.begin; block < blocks.end; ++block) {
    Products products(lanes_of<sum_t<E>>(block, H), rows);
    for (int g = 0; g < Cell::kGates; ++g) {
      products.multiply(plan.args.weights.w_ih + (g * H + block * kLanes) * I, I, plan.x_lanes,
                        false);
      const V bias = V::load(plan.packed.bias + (block * Cell::kSums + Cell::XMap::at(g)) * kLanes);
      sum_t<E>* const sums = plan.ahead_sums + (block * Cell::kGates + g) * kLanes;
      products.each_row([&](int64_t row, V sum) __attribute__((always_inline)) {
        (bias + sum).store(sums + row * plan.ahead_stride());
      });
    }
  }
}

// One thread's part of the steps.
template <typename Cell, typename E>
void forward_steps(const ForwardPlan<Cell, E>& plan, const Share& mine, Barrier::Member& member) {
  using T = sum_t<E>;
  const ForwardArgs<E>& args = plan.args;
  const SequenceShape& shape = args.shape;
  const int64_t H = shape.H;
  const int64_t O = shape.hidden();
  const Range own_units = columns_of<T>(mine.units, H);
  const Range own_hidden = columns_of<T>(mine.hidden, O);

  ForwardStep<Cell, E> this_step(plan, mine.units);

  Steps steps(shape, false);
  Neighbours neighbours = plan.neighbours;
  // One step more than is read (layers.h).
  const auto await_input = [&](int64_t until) {
    neighbours.await(until < shape.T ? until + 1 : until);
  };
  int64_t previous_batch = 0;
  int64_t previous_offset = 0;
  int64_t ahead_until = 0;  // steps whose input products are there
  int64_t ahead_row = 0;    // the next step's first row among them
  for (int64_t s = 0; s < shape.T; ++s, steps.next()) {
    const Step step = steps.now();
    const Step next = steps.following();
    const int64_t batch = mine.rows.end < step.batch ? mine.rows.end : step.batch;
    const int64_t rows = batch > mine.rows.begin ? batch - mine.rows.begin : 0;

    if (plan.ahead && s == ahead_until) {
      Steps later = steps;
      int64_t count = 0;
      for (; ahead_until < shape.T && ahead_until < s + plan.steps_ahead; ++ahead_until) {
        const Step then = later.now();
        for (int64_t row = mine.rows.begin; row < mine.rows.end && row < then.batch; ++row)
          plan.ahead_x[count++] = args.x + (then.offset + row) * args.x_stride;
        if (ahead_until + 1 < shape.T) later.next();
      }
      await_input(ahead_until);
      if (plan.x_as_lanes) {
        input_products_as_lanes(plan, count, mine.units);
      } else {
        InputProducts<Cell, E> products(plan);
        if (s == 0 && (plan.x_by_block || plan.packs_in_passing)) {
          products.pack_and_run(count, mine.units);
        } else {
          products.run(count, mine.units);
        }
      }
      ahead_row = 0;
    }
    if (!plan.ahead) await_input(s + 1);

    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = mine.rows.begin + i;
      const int64_t n = step.offset + row;
      const bool goes_on = row < previous_batch;
      ForwardRow<E>& at = plan.rows[i];
      at.x = args.x + n * args.x_stride;
      at.x_next = row < next.batch ? args.x + (next.offset + row) * args.x_stride : at.x;
      at.ahead = plan.ahead ? plan.ahead_sums + (ahead_row + i) * plan.ahead_stride() : nullptr;
      at.h_prev = goes_on              ? args.out + (previous_offset + row) * args.out_stride
                  : args.h0 != nullptr ? args.h0 + row * O
                                       : plan.none;
      if constexpr (ForwardPlan<Cell, E>::kKeepsState) {
        at.state = plan.states + row * H;
        for (Range u = own_units; !goes_on && u.begin < u.end; u.begin += Vec<T>::kLanes) {
          const int n = lanes_of<T>(0, u.size());
          Operand<E>::widened(at.h_prev + u.begin, n).store(at.state + u.begin, n);
        }
      }
      at.h = shape.P > 0 ? plan.unprojected + row * H : args.out + n * args.out_stride;
      at.gates = args.gates != nullptr ? args.gates + n * Cell::kSaved * H : nullptr;
      if constexpr (Cell::kHasState) {
        at.c = args.cells != nullptr ? args.cells + n * H : args.cn + row * H;
        at.c_prev = !goes_on                ? (args.c0 != nullptr ? args.c0 + row * H : plan.zeros)
                    : args.cells != nullptr ? args.cells + (previous_offset + row) * H
                                            : args.cn + row * H;
      }
    }
    ahead_row += rows;

    this_step.count = rows;
    this_step.back = s % 2 != 0;
    this_step.packs = s == 0 && plan.packs_in_passing && !plan.ahead;
    this_step.from_zeros =
        s == 0 && args.h0 == nullptr && (this_step.packs || plan.packed.zeros_stay(mine.units));
    if (plan.h_in_place) {
      InPlace<Cell, E>{this_step}.run();
    } else {
      this_step.run();
    }
    if (shape.P > 0) {
      if (!mine.alone) member.wait();
      Columns<E> projection = Columns<E>::packed(plan.packed.projection, H);
      projection.from_memory = comes_from_memory<E>(H, O);
      const Product<E, Left::rows, E> project{
          plan.unprojected + mine.rows.begin * H,
          H,
          projection,
          H,
          args.out + (step.offset + mine.rows.begin) * args.out_stride,
          args.out_stride,
          O,
          false};
      multiply_matrices(project, rows, mine.hidden);
    }

    // Sequences that end with this step.
    const int64_t first = next.batch > mine.rows.begin ? next.batch : mine.rows.begin;
    for (int64_t row = first; row < batch; ++row) {
      const int64_t n = step.offset + row;
      if (args.hn != nullptr) {
        for (int64_t u = own_hidden.begin; u < own_hidden.end; ++u)
          args.hn[row * O + u] = args.out[n * args.out_stride + u];
      }
      if (Cell::kHasState && args.cells != nullptr) {
        for (int64_t u = own_units.begin; u < own_units.end; ++u)
          args.cn[row * H + u] = args.cells[n * H + u];
      }
    }
    previous_batch = step.batch;
    previous_offset = step.offset;
    neighbours.reach(s + 1);
    if (!mine.alone) member.wait();
  }
}

template <typename Cell, typename E>
void forward_layer(const ForwardArgs<E>& args, const Threads& threads,
                   const Neighbours& neighbours = {}) {
  using T = sum_t<E>;
  constexpr int kLanes = Vec<T>::kLanes;
  constexpr int kGates = Cell::kGates;
  const SequenceShape& shape = args.shape;
  const int64_t I = shape.I;
  const int64_t H = shape.H;
  const int64_t O = shape.hidden();

  ForwardPlan<Cell, E> plan{args, neighbours};
  plan.blocks = blocks_of<T>(H);
  // Weights packed for many calls may serve one row.
  plan.packed.tail = tail_vectors<T>(kGates, H, args.packed == nullptr ? shape.B : 1);
  const Split wanted = split_work<Cell, E>(shape, threads.limit);
  const int64_t thread_rows = (shape.B + wanted.rows - 1) / wanted.rows;
  const int64_t hh_bytes = kGates * H * O * static_cast<int64_t>(sizeof(E));
  const int64_t ih_bytes = kGates * H * I * static_cast<int64_t>(sizeof(E));
  const bool wide = hh_bytes + ih_bytes >= kWideBytes;
  const bool shares_memory = wanted.units > 1 || threads.beside;
  if (args.packed == nullptr) {
    plan.x_in_place = (shape.T == 1 && shape.B <= (wide ? kRowsInPlaceWide : kRowsInPlace)) ||
                      (shape.B == 1 && shape.T <= kStepsInPlace && ih_bytes <= kLanesBytes);
    plan.h_in_place =
        plan.x_in_place || (shape.B == 1 && (shape.T <= steps_in_place(hh_bytes, wide) ||
                                             (shares_memory && hh_bytes > kInPlaceOfThreads)));
  }
  plan.near = kGates > 1 && PackedWeights<Cell, E>::kAbreast == kGates &&
              hh_bytes > kL1Bytes * wanted.units && hh_bytes <= kNearBytes * wanted.units;
  plan.x_from_memory = comes_from_memory<E>(kGates * H, I);
  plan.h_from_memory = comes_from_memory<E>(kGates * H, O);
  plan.beyond_caches = hh_bytes + ih_bytes > kBeyondCachesBytes;
  // Where w_hh is read in place, products in the step would be dot products, of so few inputs each.
  const bool few = I <= few_inputs(hh_bytes) && !plan.h_in_place;
  plan.ahead =
      !plan.x_in_place && shape.T > 1 &&
      (plan.beyond_caches ? thread_rows <= kRowsAheadOfMemory : thread_rows <= kRowsAhead && !few);
  if (plan.ahead) {
    const int64_t step_bytes = thread_rows * plan.ahead_stride() * static_cast<int64_t>(sizeof(T));
    plan.steps_ahead = kAheadSums / step_bytes;
    if (plan.steps_ahead < kFewestAhead) plan.steps_ahead = kFewestAhead;
    constexpr int64_t kRows = kLanesAbreast * kLanes;
    constexpr int64_t kFewRows = kFewRowsAhead < kRows ? kFewRowsAhead : kRows;
    const int64_t most = ih_bytes > kReadAgainBytes  ? kReadingsInPlace * kRows
                         : ih_bytes > kLanesBytes    ? kRows
                         : ih_bytes > kLanesBytesFew ? kFewRows
                                                     : 0;
    plan.x_as_lanes = args.packed == nullptr && shape.B <= kRows && shape.T * shape.B <= most;
    if (plan.x_as_lanes) {
      plan.x_in_place = true;
      plan.steps_ahead = kRows / shape.B;
    }
    plan.x_by_block = args.packed == nullptr && !plan.x_as_lanes && wanted.rows == 1 &&
                      !neighbours.has_before() && shape.T * step_bytes <= kAheadAtOnce;
    if (plan.x_by_block) plan.steps_ahead = shape.T;
    if (neighbours.has_before() && plan.steps_ahead > kStepsBehind) plan.steps_ahead = kStepsBehind;
    if (plan.steps_ahead > shape.T) plan.steps_ahead = shape.T;
  }

  // Not where threads share panels.
  const int64_t first_rows =
      plan.ahead ? plan.steps_ahead * shape.B : Steps(shape, false).now().batch;
  plan.packs_in_passing = plan.kTilesCall && args.packed == nullptr && !plan.x_in_place &&
                          hh_bytes + ih_bytes > kPackedInPassing && first_rows >= kFewestThatCall &&
                          wanted.rows == 1;

  const int64_t ahead_rows = plan.ahead ? plan.steps_ahead * shape.B : 0;
  using OneStep = InPlace<Cell, E>;
  const bool lanes_in_place = plan.h_in_place && shape.B >= OneStep::kFewestLanes;
  const int64_t x_lanes = plan.x_as_lanes  ? ForwardPlan<Cell, E>::ProductsAhead::lanes_size(I)
                          : lanes_in_place ? OneStep::ByLanes::lanes_size(I)
                                           : 0;
  const int64_t h_lanes = lanes_in_place ? OneStep::ByLanes::lanes_size(O) : 0;
  const int64_t x_panels =
      plan.x_by_block ? InputProducts<Cell, E>::kBlocks * PackedWeights<Cell, E>::panel(I) : 0;
  plan.packed.packs_x = !plan.x_in_place && !plan.x_by_block;
  plan.packed.packs_h = !plan.h_in_place;
  plan.packed.looks_at_h =
      args.packed != nullptr || (args.h0 == nullptr && shape.B * hh_bytes > kWorthALook);
  const auto lay_out = [&](Arena arena) {
    if (args.packed == nullptr) plan.packed.lay_out(arena, shape);
    plan.unprojected = arena.take<E>(shape.P > 0 ? shape.B * H : 0);
    plan.states = arena.take<T>(plan.kKeepsState ? shape.B * H : 0);
    plan.zeros = arena.take<T>(H);
    plan.none = arena.take<E>(H);
    plan.ahead_sums = arena.take<T>(ahead_rows * plan.ahead_stride());
    // Threads with different units of the same rows have tables of their own.
    plan.rows = arena.take<ForwardRow<E>>(wanted.units * shape.B);
    plan.ahead_x = arena.take<const E*>(wanted.units * ahead_rows);
    plan.x_panels = arena.take<E>(wanted.units * x_panels);
    plan.x_lanes = arena.take<E>(wanted.rows * wanted.units * x_lanes);
    plan.h_lanes = arena.take<E>(wanted.rows * wanted.units * h_lanes);
    return arena.used();
  };
  // Only to be read.
  if (args.packed != nullptr)
    lay_out_packed(shape, const_cast<std::byte*>(args.packed), plan.packed);
  Workspace workspace(lay_out(Arena(nullptr)));
  lay_out(Arena(workspace.block()));
  for (int64_t i = 0; i < H; ++i) plan.zeros[i] = T{};
  for (int64_t i = 0; i < H; ++i) plan.none[i] = E{};

  Barrier barrier(wanted.rows * wanted.units);
  auto body = [&](int id, int team) {
    Barrier::Member member(barrier, id, team);
    if (args.packed == nullptr) {
      if (!plan.packs_in_passing) plan.packed.pack_all_gates(shape, args.weights, team, id);
      plan.packed.pack_rest(shape, args.weights, team, id);
      member.wait();
    }

    const Split split = wanted.among(team);
    const Share mine = share_of<T>(shape, split, id, team);
    const int64_t part = id % split.units;
    ForwardPlan<Cell, E> own = plan;
    own.rows += part * shape.B + mine.rows.begin;
    own.x_panels += part * x_panels;
    own.x_lanes += id * x_lanes;
    own.h_lanes += id * h_lanes;
    if (plan.ahead) {
      own.ahead_x += part * ahead_rows + mine.rows.begin * plan.steps_ahead;
      own.ahead_sums += mine.rows.begin * plan.steps_ahead * plan.ahead_stride();
    }
    forward_steps(own, mine, member);
  };
  run_team(threads, wanted.rows * wanted.units, body);
}
