// What is decided of a layer's forward pass before it begins: where its weights are read, when its
// input products are made, and the memory of it all. The numbers that decide, and why.

// One step of up to this many rows reads the weights in place, and of up to kRowsInPlaceWide rows
// where they have more than kWideBytes bytes (AVX2, LSTMCell H = 512: B = 16 0.65 ms and 0.72 from
// panels, B = 32 the same; H = 128, B = 16 51 us and 50).
constexpr int64_t kRowsInPlace = 8;
constexpr int64_t kRowsInPlaceWide = 32;
constexpr int64_t kWideBytes = 2 << 20;
// With AVX-512, of weights whose rows are whole cache lines, so many for each vector of the mean of
// both rows' lengths, since the sums of lanes are what these products take longer for, and of
// others, of less than kWideBytes, half as many (LSTMCell, us, from panels and in place: H = 48, B
// = 16 7.1 and 7.0, B = 24 8.4 and 8.8; H = 96, B = 16 18.0 and 15.3, B = 32 28.7 and 27.5; H =
// 128, B = 16 31.5 and 23.0, B = 32 48 and 43, B = 48 66 and 65, B = 64 84 and 89; H = 256, B = 64
// 309 and 300, H = 512, B = 40 846 and 725, B = 64 1235 and 1144; H = 100, B = 12 17.4 and 16.4, B
// = 16 20.3 and 20.5; H = 200, B = 16 74 and 59, B = 32 117 and 115). From memory no more than
// 32, since it depends (H = 1024, B = 40 4.63 ms and 3.92, B = 48 4.18 and 4.48).
constexpr int64_t kRowsOfAVector = 6;
constexpr int64_t kMostInPlace = 64;
struct WeightsInPlace {
  int64_t bytes;     // of both
  int64_t mean_row;  // bytes of a row of w_ih and one of w_hh, on average
  bool whole_lines;  // rows of both begin where cache lines do
  bool from_memory;  // either
};
template <typename T>
constexpr int64_t rows_in_place(const WeightsInPlace& w) {
  const int64_t usual = w.bytes >= kWideBytes ? kRowsInPlaceWide : kRowsInPlace;
  if (Vec<T>::kLanes < 16 || w.from_memory || (!w.whole_lines && w.bytes >= kWideBytes))
    return usual;
  const int64_t rows = w.mean_row / kSimdBytes * kRowsOfAVector / (w.whole_lines ? 1 : 2);
  return rows < kRowsInPlace ? kRowsInPlace : rows < kMostInPlace ? rows : kMostInPlace;
}
// Whether so many rows of a step in place become the lanes of products, with the weights as they
// lie: rows that are worth the transpositions, two vectors of them (from dot products to lanes,
// AVX2, H = 512: B = 16 LSTM 1.20 ms and 0.99, GRU 0.81 and 0.63; B = 8 LSTM 0.55 and 0.62), or one
// of 16 lanes, and fill wide vectors by four fifths (AVX-512, LSTMCell, us: H = 300, B = 32 247 and
// 215). With 16 lanes dot products are faster but where rows of weights begin within cache lines,
// or come from memory, or nearly all of two vectors are filled and weights are wide (H = 700, B =
// 16 990 and 780, H = 1024 2200 and 2050; H = 512, B = 32 622 and 594, though H = 256 154 and 157,
// and with B = 16 81 and 97, 302 and 355).
template <typename T>
constexpr bool are_lanes(const WeightsInPlace& w, int64_t rows) {
  constexpr int kLanes = Vec<T>::kLanes;
  if (rows < (kLanes == 16 ? 16 : 2 * kLanes) || rows > kRowsInPlaceWide) return false;
  if (kLanes >= 8 && 5 * rows < 4 * kLanes * blocks_of<T>(rows)) return false;
  return kLanes < 16 || !w.whole_lines || w.from_memory ||
         (w.bytes >= kWideBytes && rows > 2 * kLanes - 4);
}
// Two steps of up to kRowsInPlace rows read both weights in place as well, and three of half as
// many: as many readings of the weights as packing is worth (LSTM, T = 2, B = 2, 4 and 8, us, from
// panels and in place: H = 128 16.4 and 11.0, 19.7 and 14.5, 27.6 and 24.1, H = 256 68 and 42, 77
// and 54, 99 and 90, H = 512 296 and 165, 296 and 180, 471 and 324; T = 3, B = 2 and 4 H = 128 18.9
// and 14.7, 24.2 and 19.6, H = 512 325 and 241, 335 and 267; B = 6, H = 256 109 and 115; T = 4, B =
// 2 to 4, H = 256 2 to 9 % slower; H = 64, T = 2, B = 2 6.2 and 5.3, B = 8 9.0 and 9.5; I = 2048, H
// = 256, T = 2, B = 4 377 and 271). Weights from memory come no faster the second time: there two
// rows only (T = 2, B = 2 and 4, ms, when products ahead had rows of x as lanes, LSTM H = 1024 2.39
// and 1.43, 2.56 and 2.01, I = 4096, H = 512 2.19 and 1.65, 2.17 and 3.02; T = 3, H = 1024 2.55 and
// 2.05, 2.83 and 3.13; now more make them as dot products, below). So it is with 8 lanes or fewer
// (AVX2, us, LSTM H = 256, T = 2, B = 2 83 and 65, B = 8 165 and 189, T = 3, B = 2 96 and 95, B = 4
// 139 and 149; float64 with AVX-512, H = 128, T = 2, B = 2 32 and 25, B = 4 38 both).
template <typename T>
constexpr bool few_steps_of_rows(int64_t steps, int64_t B, bool beyond_caches) {
  if (B == 1 || steps == 1 || steps > 3) return false;
  if (Vec<T>::kLanes < 16 || beyond_caches) return B == 2;
  return B <= (steps == 2 ? kRowsInPlace : kRowsInPlace / 2);
}
// One row reads a w_hh of more than this many bytes in place at every step where several threads
// share what memory gives, and packing would write as much as it reads (two threads, T = 50, in
// place and from panels: GRU H = 1536, 28 MB, 12.2 ms and 11.1, LSTM H = 1536, 38 MB, 18.8
// and 19.3, GRU H = 2048, 50 MB, 36.3 and 39.5, LSTM 60 and 67; both directions side by side, LSTM
// H = 1536, T = 21 28.4 and 31.3).
constexpr int64_t kInPlaceOfThreads = 32 << 20;
// Of up to this many steps one row reads both weights in place (AVX2, two steps of LSTM H =
// 64: 11.2 us and 5.7, H = 128: 46 and 21; four steps of H = 256: 165 us and 123, of H = 512 1.10
// ms and 0.54),
constexpr int64_t kStepsInPlace = 4;
// and of up to so many w_hh: rows come nearly as fast as panels do, and packing costs as much as
// some steps.
struct RowsOfWeights {
  int64_t bytes;
  bool whole_lines;  // rows begin where cache lines do
  bool meanwhile;    // steps from panels would make input products (meanwhile.h)
  bool wide;         // both weights have more than kWideBytes
};
// How many were found by steps of both kinds in turn, T = 7 to 40, B = 1, I = H, float32, AVX-512,
// where as many steps take the same time: LSTM H = 48 8, H = 64 and 80 14, H = 96 40, H = 192 to
// 256 60 and more, H = 384 29, H = 512 17 to 40, H = 640 30, H = 1024 22; which make products
// meanwhile, H = 112 to 144 15 to 21, H = 160 42; GRU H = 64 9, H = 112 27, H = 192 to 320 50 and
// more, H = 512 26, H = 1024 25; meanwhile, H = 128 31, H = 144 16, H = 160 and 176 26. Panels of
// an RNN, of one vector a block, gain little: H = 96 17, H = 128 25, from H = 144 on 40 and more.
// Of rows that begin within lines most loads take two of them: LSTM H = 100 8, H = 136 to 250 13, H
// = 300 and 333 16, H = 1100 19, GRU H = 120 to 250 11 to 19, H = 300 to 1000 13 to 22. Where one
// number of bytes stands for layers that differ (GRUs meanwhile, LSTM H = 512) it is nearer to the
// fewest. float64 and bfloat16, some shapes: as fast as before or faster. Two threads: the same
// within the noise. Of more than 24 MB, ms, from panels and in place, LSTM H = 1536, T = 16 13.1
// and 12.8, T = 24 17.2 and 18.0; of 81 MB, for which memory is allocated at every call, LSTM H =
// 2304, T = 21 46.3 and 42.8, T = 40 81.6 and 81. AVX2, LSTM H = 512: T = 16 2.9 and 1.9, T = 50
// 6.3 and 7.2.
template <typename Cell>
constexpr int64_t steps_in_place(const RowsOfWeights& hh) {
  constexpr auto kept = static_cast<int64_t>(Workspace::kKept);
  constexpr int64_t kKB = 1 << 10;
  constexpr int64_t kMB = 1 << 20;
  if (kSimdBytes < 64) return hh.wide ? 16 : kStepsInPlace;
  if (hh.bytes > kept) return 45;
  if (hh.bytes > 24 * kMB) return 20;
  if (!hh.whole_lines) {
    if (hh.bytes > kMB) return 16;
    return hh.bytes > 160 * kKB ? 12 : hh.bytes > 128 * kKB ? 8 : kStepsInPlace;
  }
  if (Cell::kGates == 1) return hh.bytes > 80 * kKB ? 40 : hh.bytes > 32 * kKB ? 16 : kStepsInPlace;
  if (hh.meanwhile) return hh.bytes > 350 * kKB ? 28 : 16;
  if (hh.bytes > 2 * kMB) return 26;
  if (hh.bytes > 256 * kKB) return 40;
  return hh.bytes > 128 * kKB ? 24 : hh.bytes > 32 * kKB ? 8 : kStepsInPlace;
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
// Bytes of sums that the input products of a chunk of steps aim at: half of L2, or, where w_ih
// comes from memory, which every chunk reads anew, more than L2 (from 512 KB to 8 MB, ms: LSTM H =
// 1024, T = 50, B = 4 22.2 and 18.9, T = 25, B = 8 17.7 and 16.1, frozen H = 1536, T = 100, B =
// 1 54.8 and 51.2, RNN H = 2000, T = 50, B = 8 35.4 and 28.9; 2 MB 1 % less, 4 MB and 16 MB the
// same),
constexpr int64_t kAheadSums = 512 << 10;
constexpr int64_t kAheadSumsOfMemory = 8 << 20;
// and the fewest steps that make such a product worth while.
constexpr int64_t kFewestAhead = 8;
// One row of an LSTM or a GRU makes the products of the first so many steps before all, and those
// of the next so many each time while steps read w_hh (meanwhile.h),
constexpr int64_t kStepsMeanwhile = 4;
// where w_hh has more than kFewestMeanwhile bytes, or each of several threads has more than
// kFewestOfThreadsMeanwhile of it (two threads, T = 100, LSTM H = 160 166 us and 168, H = 192 243
// and 241, H = 224, 392 KB each, 321 and 285, GRU H = 192 176 and 174, H = 224, 294 KB, 235 and
// 222, H = 256 309 and 272), both weights, or a thread's part of them, have at most kMostMeanwhile,
// and I is more than half of H (LSTM H = 128, T = 100: I = 64 170 us and 169, I = 32 157 and 162)
// and at most twice as much (I = 256 252 and 246).
constexpr int64_t kFewestMeanwhile = 160 << 10;
constexpr int64_t kFewestOfThreadsMeanwhile = 288 << 10;
constexpr int64_t kMostMeanwhile = 840 << 10;
// Few steps: all input products are made ahead, as dot products with w_ih in place, which read it
// once for all rows of all steps and pack nothing. A sum of lanes costs the more, the fewer
// elements it is of: there may be one and a half times as many rows as a row of w_ih has vectors of
// kSimdBytes, and no more than it takes to pack w_ih (us, step by step or from panels, and so; B =
// 1: LSTM H = 512, T = 2 163 and 124, T = 4 309 and 196, T = 10 533 and 462, T = 20 944 and 912, T
// = 25 the same, T = 32 1547 and 1701; H = 256, T = 4 67 and 46, T = 16 155 and 142, T = 25 the
// same; H = 128, T = 4 14.2 and 12.4, T = 12 the same; H = 64, T = 2 to 8 up to 4 % slower; I =
// 512, H = 64, T = 12 30.0 and 22.5; GRU H = 256, T = 4 49 and 33; RNN T = 4 12.1 and 10.5;
// bfloat16, LSTM T = 4 43 and 36; more sequences: H = 512, T = 4, B = 2 378 and 285, B = 8 811 and
// 657, T = 8, B = 2 557 and 512, B = 4 737 and 699, T = 12, B = 4 985 and 1063, T = 2, B = 16 694
// and 574; H = 300, T = 5, B = 3 167 and 153; H = 256, T = 10, B = 2 150 and 140, T = 16, B = 4 322
// and 357; H = 128, T = 4, B = 3 27 and 25, T = 8, B = 4 48 and 51; GRU H = 512, T = 8, B = 4 565
// and 512; bfloat16, LSTM T = 4, B = 2 186 and 162; two threads, T = 4, B = 8 404 and 336). With 8
// lanes as many as there are vectors, up to 8, of one sequence or two (AVX2, H = 256, B = 1, T = 4
// 83 and 62, T = 8 118 and 112, T = 12 162 and 165, H = 512, T = 4, B = 2 536 and 488, B = 4 865
// and 880; float64 H = 256, B = 1, T = 4 146 and 108, T = 12 284 and 276).
constexpr int64_t kFewestVectorsOfDots = 8;
constexpr int64_t kMostDotsOfOne = 24;
constexpr int64_t kMostDots = 32;
constexpr int64_t kMostDotsNarrow = 8;
// Of a w_ih from memory 4 rows, or, with 16 lanes, 16 of several sequences (H = 1024, ms:
// LSTM B = 1, T = 2 1.42 and 0.84, T = 4 1.59 and 1.34, T = 8 2.36 and 2.40, T = 12 3.11 and 3.24;
// T = 4, B = 2 3.63 and 3.20, B = 4 the same, B = 8 4.38 and 5.08, T = 2, B = 8 3.52 and 3.20;
// AVX2, B = 1, T = 2 1.57 and 1.15, T = 8 3.38 and 3.29).
constexpr int64_t kDotsFromMemory = 4;
constexpr int64_t kMostDotsFromMemory = 16;
// With 8 lanes, and where steps of several rows would read w_ih in place anyway, sharing its loads,
// that is so of no more than two sequences, and of twice as many vectors (T = 2, B = 2, LSTM H =
// 256 40 and 37, H = 512 164 and 136; B = 4, H = 256 49 and 56).
template <typename E>
constexpr int64_t rows_of_dots(int64_t I, int64_t B, bool from_memory, bool in_place_anyway) {
  constexpr bool kWide = Vec<sum_t<E>>::kLanes == 16;
  const int64_t vectors = I * static_cast<int64_t>(sizeof(E)) / kSimdBytes;
  const bool few = in_place_anyway || !kWide;
  if (B > 2 && few) return 0;
  if (vectors < kFewestVectorsOfDots * (B == 2 && few ? 2 : 1)) return 0;
  const bool several = B > 1 && kWide;
  const int64_t most = from_memory ? (several ? kMostDotsFromMemory : kDotsFromMemory)
                       : !kWide    ? kMostDotsNarrow
                       : several   ? kMostDots
                                   : kMostDotsOfOne;
  const int64_t rows = kWide ? vectors * 3 / 2 : vectors;
  return rows < most ? rows : most;
}
// Where all steps together have up to so many bytes of sums, one product makes them, a few blocks
// at a time, and what it reads of w_ih is packed just before, to stay in L2 (T = 25: LSTM H = 1024,
// B = 4 13.6 ms and 12.1, H = 512 2.14 and 2.11, GRU H = 512, B = 1 0.91 and 0.89; two threads,
// LSTM H = 1024, B = 4 14 % less, the others as before).
constexpr int64_t kAheadAtOnce = 2 << 20;
// Of a w_ih from memory it is this many, more than of a chunk, since there are no panels of w_ih
// then (from 2 MB on: LSTM H = 1024, T = 25, B = 8 17.7 and 16.1, B = 32 55.7 and 53.9, 33 MB of
// scratch memory and 30).
constexpr int64_t kAheadAtOnceOfMemory = 16 << 20;

// A thread's part of w_hh of more than this many bytes comes from L3 at every step.
constexpr int64_t kFromL3 = 5 << 19;

// Without an h0 the first step needs no product with w_hh, if that is finite. Packing looks, where
// such a product is more than the looking: rows times weights of more than this many bytes (LSTM, H
// = 32: T = 60, B = 1 10.3 us and 10.4, T = 20, B = 4 11.5 both; T = 10, B = 51 50.2 and 48.8; H =
// 512, T = 25, B = 4 2.35 ms and 2.30; H = 128, T = 1, B = 32 50 us and 34).
constexpr int64_t kWorthALook = 64 << 10;
// Where it is read in place, looking is a reading of its own, which costs as much as the product of
// about four rows (T = 1, LSTM, us: H = 512, B = 8 170 and 136, B = 24 468 and 293, H = 256, B = 6
// 44 and 35, B = 16 99 and 61, H = 128, B = 16 24.7 and 18.8, H = 1024, B = 24 2.93 ms and 1.58; T
// = 2, B = 8, H = 256 91 and 80; AVX2 and float64 not timed).
constexpr int64_t kRowsWorthALook = 5;

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
  using Packed = PackedWeights<Cell, E>;
  // One row's step can make input products of later ones (meanwhile.h): of LSTMs and GRUs, where 32
  // registers hold the sums of both, and operands are single elements, not groups.
  static constexpr bool kStepsMakeProducts =
      Operand<E>::kGroup == 1 && Cell::kGates > 1 && !exceeds_registers(kTileRows, 1, Cell::kGates);
  // Tiles can call for memory: of LSTMs and GRUs, where 32 registers hold a tile's sums.
  static constexpr bool kTilesCall =
      Cell::kSums > 1 && !exceeds_registers(kTileRows, 1, Cell::kSums);

  const ForwardArgs<E>& args;
  Neighbours neighbours;
  int64_t blocks = 0;  // of units
  // The weights are read where they are, not from panels: w_ih by every step or ahead of them.
  bool x_in_place = false;
  bool h_in_place = false;
  bool beyond_caches = false;  // the weights do not stay in L3
  bool rows_as_lanes = false;  // a step in place makes lanes of its rows
  bool x_from_memory = false;  // w_ih comes from memory (comes_from_memory in tile.h),
  bool h_from_memory = false;  // w_hh does
  bool h_from_l3 = false;      // a thread's part of w_hh comes from L3, and not from memory
  bool near = false;           // one row reads w_hh a panel at a time
  bool ahead = false;          // input products before the steps,
  bool x_as_dots = false;      // which are dot products with w_ih as it lies
  bool x_by_block = false;     // w_ih is packed a few blocks at a time, just before
  bool meanwhile = false;      // later ones made by earlier steps while those read w_hh
  int64_t steps_ahead = 0;
  bool packs_in_passing = false;  // panels are made a block at a time, as they are first used

  Packed packed = {};
  E* unprojected = nullptr;  // [B, H]
  T* states = nullptr;       // [B, H]
  T* zeros = nullptr;        // [H]
  E* none = nullptr;         // [H]: zeros that stand for an h0
  // Of the steps ahead (twice as many where they are made meanwhile), parts of [steps *
  // B][blocks][G][kLanes], and up to three rows more, where each thread has its rows or its blocks:
  T* ahead_sums = nullptr;
  // Of each thread:
  ForwardRow<E>* rows = nullptr;  // [B]
  const E** ahead_x = nullptr;    // [steps * B], as many steps, and up to three more
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
