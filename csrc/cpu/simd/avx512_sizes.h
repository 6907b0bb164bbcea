// The sizes of AVX-512, apart from its instructions: tests give them to the baseline as well.

constexpr int kSimdBytes = 64;
constexpr int kTileSums = 24;  // accumulators of a tile: leaves 8 of 32 registers for operands
// A part of a product (product.h): its panels take 128 KB of an L2 of 1 MB. It is as many blocks
// wide as one tile; wider ones were not tried.
constexpr int64_t kDepth = 512;
constexpr int64_t kBlocksAbreast = 4;
