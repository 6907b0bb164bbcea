// Which regime a layer's forward pass runs in: a small cost model of sizes. Each rule says why it
// is one; the timings that its numbers come from are in csrc/DECISIONS.md, under the same names or
// the questions that they answer.

// Reading weights in place, as dot products or with rows as lanes, saves packing them.

// One step of up to this many rows reads the weights in place, and of up to kRowsInPlaceWide rows
// where they have more than kWideBytes bytes.
constexpr int64_t kRowsInPlace = 8;
constexpr int64_t kRowsInPlaceWide = 32;
constexpr int64_t kWideBytes = 2 << 20;
// With 16 lanes it may be more rows, the longer the rows of weights are, since sums of lanes are
// what dot products take longer for: so many for each vector of weights whose rows are whole cache
// lines, and half as many of others that are not wide. Not of weights from memory, where it
// depends.
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

// Whether so many rows of a step in place become the lanes of products: where they are worth the
// transpositions (two vectors of them, or one of 16 lanes) and fill wide vectors by four fifths.
// With 16 lanes dot products are faster all the same, but for weights whose rows begin within cache
// lines or come from memory, or wide ones where nearly all of two vectors are filled.
template <typename T>
constexpr bool are_lanes(const WeightsInPlace& w, int64_t rows) {
  constexpr int kLanes = Vec<T>::kLanes;
  if (rows < (kLanes == 16 ? 16 : 2 * kLanes) || rows > kRowsInPlaceWide) return false;
  if (kLanes >= 8 && 5 * rows < 4 * kLanes * blocks_of<T>(rows)) return false;
  return kLanes < 16 || !w.whole_lines || w.from_memory ||
         (w.bytes >= kWideBytes && rows > 2 * kLanes - 4);
}

// Two steps of up to kRowsInPlace rows read both weights in place as well, and three of half as
// many: as many readings of the weights as packing is worth. Weights from memory come no faster the
// second time, and dot products of few lanes cost more: there two rows only.
template <typename T>
constexpr bool few_steps_of_rows(int64_t steps, int64_t B, bool beyond_caches) {
  if (B == 1 || steps == 1 || steps > 3) return false;
  if (Vec<T>::kLanes < 16 || beyond_caches) return B == 2;
  return B <= (steps == 2 ? kRowsInPlace : kRowsInPlace / 2);
}

// One row reads both weights in place in up to so many steps,
constexpr int64_t kStepsInPlace = 4;
// and w_hh in up to steps_in_place: its rows come nearly as fast as panels do, and packing costs as
// much as some steps. More steps are worth packing where rows are whole cache lines (of others most
// loads take two of them), where panels of an RNN, one vector a block, gain little, and where
// packing takes memory longer; fewer where steps from panels would make input products meanwhile.
struct RowsOfWeights {
  int64_t bytes;
  bool whole_lines;  // rows begin where cache lines do
  bool meanwhile;    // steps from panels would make input products (meanwhile.h)
  bool wide;         // both weights have more than kWideBytes
};

template <typename Cell>
constexpr int64_t steps_in_place(const RowsOfWeights& hh) {
  constexpr auto kept = static_cast<int64_t>(Workspace::kKept);
  constexpr int64_t kKB = 1 << 10;
  constexpr int64_t kMB = 1 << 20;
  if (kSimdBytes < 64) return hh.wide ? 16 : kStepsInPlace;
  if (hh.bytes > kept) return 45;  // Panels would be allocated at every call.
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
// A w_hh of more than this many bytes it reads in place at every step, where several threads share
// what memory gives: packing would write as much as it reads.
constexpr int64_t kInPlaceOfThreads = 32 << 20;
// A thread's part of w_hh of more than this many bytes comes from L3 at every step.
constexpr int64_t kFromL3 = 5 << 19;

// Without an h0 the first step needs no product with w_hh, if that is finite. Packing looks, where
// such a product is more than the looking: rows times weights of more than this many bytes.
constexpr int64_t kWorthALook = 64 << 10;
// Where it is read in place, looking is a reading of its own, which costs as much as the product of
// about four rows.
constexpr int64_t kRowsWorthALook = 5;

// Steps from panels.

// Of one row, or of two where their tile is but a block, up to this many vectors of units are
// finished together, which hides the latency of a cell's formula.
constexpr int kTogether = 8;
// One row of an LSTM or a GRU reads a w_hh (a thread its part) of more than kL1Bytes, as much as L1
// has, and up to kNearBytes a panel at a time from end to end: of these bytes L1 still holds the
// most when the next step comes, and of few streams the machine's prefetchers make the most. From
// further away panels side by side come as fast or faster, and panels in two parts (AVX2, LSTM) and
// those of RNNs, one vector a block, always do.
constexpr int64_t kL1Bytes = 48 << 10;
constexpr int64_t kNearBytes = kSimdBytes == 64 ? 8 << 20 : 256 << 10;
// Weights of more than kBeyondCachesBytes, both together, do not stay in L3 from step to step.
constexpr int64_t kBeyondCachesBytes = 20 << 20;
// There a tile of so many rows calls for its share of the next block's panel while its own product
// runs,
constexpr int kFewestThatCall = 3;
// in so many pieces of the product.
constexpr int kPiecesOfCalls = 64;
// Weights of more than this many bytes, which have left L2 since the last call and in part L3, are
// packed in passing: a block at a time, just before its panels are first used, while the tiles of
// the block before it call for what that reads and writes.
constexpr int64_t kPackedInPassing = 4 << 20;

// Input products ahead of the steps.

// At most this many rows of a thread take their input products ahead of the steps,
constexpr int64_t kRowsAhead = 4;
// if they have more inputs than this: the products of a few do not wait for h, so they fill the
// time in which the last step's cells end, and their sums need not be written and read again,
constexpr int64_t few_inputs(int64_t hh_bytes) {
  if (kSimdBytes < 64) return 0;
  return hh_bytes <= kL1Bytes / 2 ? 8 : 1;
}
// or this many rows where weights are beyond the caches: products ahead halve what every step must
// bring from memory. Elsewhere writing the sums and reading them again costs more.
constexpr int64_t kRowsAheadOfMemory = 64;
// The products of a chunk of steps aim at so many bytes of sums: half of L2, or, where w_ih comes
// from memory, which every chunk reads anew, more than L2,
constexpr int64_t kAheadSums = 512 << 10;
constexpr int64_t kAheadSumsOfMemory = 8 << 20;
// of at least so many steps.
constexpr int64_t kFewestAhead = 8;
// Where all steps together have up to so many bytes of sums, one product makes them, a few blocks
// at a time, and what it reads of w_ih is packed just before, to stay in L2. Of a w_ih from memory
// it is more than of a chunk, since there are no panels of w_ih then.
constexpr int64_t kAheadAtOnce = 2 << 20;
constexpr int64_t kAheadAtOnceOfMemory = 16 << 20;

// One row of an LSTM or a GRU makes the products of the first so many steps before all, and those
// of the next so many each time while steps read w_hh (meanwhile.h),
constexpr int64_t kStepsMeanwhile = 4;
// where w_hh has more than kFewestMeanwhile bytes, or each of several threads has more than
// kFewestOfThreadsMeanwhile of it, both weights, or a thread's part of them, have at most
// kMostMeanwhile, and I is more than half of H and at most twice as much.
constexpr int64_t kFewestMeanwhile = 160 << 10;
constexpr int64_t kFewestOfThreadsMeanwhile = 288 << 10;
constexpr int64_t kMostMeanwhile = 840 << 10;

// Few steps: all input products are made ahead, as dot products with w_ih in place, which read it
// once for all rows of all steps and pack nothing. A sum of lanes costs the more, the fewer
// elements it is of: there must be kFewestVectorsOfDots in a row of w_ih, and may be one and a half
// times as many rows as vectors, or, with fewer than 16 lanes, as many, but no more than it takes
// to pack w_ih.
constexpr int64_t kFewestVectorsOfDots = 8;
constexpr int64_t kMostDotsOfOne = 24;  // of one sequence
constexpr int64_t kMostDots = 32;
constexpr int64_t kMostDotsNarrow = 8;  // with fewer than 16 lanes
constexpr int64_t kDotsFromMemory = 4;
constexpr int64_t kMostDotsFromMemory = 16;  // with 16 lanes, of several sequences
// With 8 lanes, and where steps of several rows would read w_ih in place anyway, sharing its loads,
// that is so of no more than two sequences, and of twice as many vectors.
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
