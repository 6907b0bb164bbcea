// Products of large matrices whose right-hand operand is given as rows: gradients of weights and
// inputs of large layers.
//
// The left-hand operand is copied too. What a tile reads of it lies a row of a matrix apart, some
// KB, and of addresses so far apart a cache holds few, since they fall into few of its sets. The
// copies are strips: what a tile reads, without gaps. Those of a few tiles stay in L2, and each is
// used by a whole row of blocks: by panels of the right-hand operand, which wait in L3 and come to
// L2 once for the strips that are there.
//
// Zen 3, the backward pass, in turns with parts that read the left-hand operand as it lies: LSTM
// H = 1024, B = 32 471 ms and 379, H = 512 107 and 94, H = 256, B = 64 113 and 103, GRU H = 512 66
// and 62; H = 128, where nothing is copied now: no difference. 256 or 1024 deep: up to 9 % slower.

constexpr int64_t kStripDepth = 512;
constexpr int64_t kStripsTogether = 8;
constexpr int64_t kPanelBytes = 1 << 20;
// Copies pay for products of at least so many rows, at least so deep and of more blocks of columns
// than this.
constexpr int64_t kWorthRows = 2 * kStripsTogether * kTileRows;
constexpr int64_t kWorthDepth = 64;
constexpr int64_t kWorthBlocks = 16;

template <typename E>
bool worth_copying(int64_t M, int64_t K, int64_t N) {
  return M >= kWorthRows && K >= kWorthDepth && blocks_of<sum_t<E>>(N) > kWorthBlocks;
}

// Strips of columns, the rows of a matrix being `stride` elements, or groups, apart:
// to[strip][k][kTileRows], in whole groups of k. The last strip may be narrower.
template <typename E>
void copy_columns(const E* rows, int64_t stride, int64_t columns, int64_t K, E* to) {
  constexpr int64_t kGroup = Operand<E>::kGroup;
  constexpr int64_t kWhole = kTileRows * kGroup;
  const int64_t depth = depth_of<E>(K);
  const int64_t strips = columns / kTileRows;
  const int64_t rest = columns % kTileRows * kGroup;
  for (int64_t k = 0; k < depth; k += kGroup, rows += stride * kGroup) {
    for (int64_t i = 0; i < strips; ++i)
      __builtin_memcpy(to + (i * depth + k) * kTileRows, rows + i * kWhole, kWhole * sizeof(E));
    E* const last = to + strips * kTileRows * depth + k / kGroup * rest;
    for (int64_t i = 0; i < rest; ++i) last[i] = rows[strips * kWhole + i];
  }
}

// Strips of rows: the rows without what lies between them.
template <typename E>
void copy_rows(const E* from, int64_t stride, int64_t rows, int64_t K, E* to) {
  for (int64_t row = 0; row < rows; ++row) {
    __builtin_memcpy(to + row * depth_of<E>(K), from + row * stride,
                     static_cast<size_t>(K) * sizeof(E));
  }
}

// How a product of depth K and N columns is cut.
template <typename E>
struct Strips {
  static constexpr int kLanes = Vec<sum_t<E>>::kLanes;
  static constexpr int64_t kRows = kStripsTogether * kTileRows;
  static constexpr int64_t kMostBlocks =
      kPanelBytes / (kStripDepth * kLanes * static_cast<int64_t>(sizeof(E)));

  int64_t depth;   // of a part of k, in whole groups
  int64_t blocks;  // of a part of the columns

  Strips(int64_t K, int64_t N) : blocks(blocks_of<sum_t<E>>(N)) {
    const int64_t parts = (K + kStripDepth - 1) / kStripDepth;
    depth = depth_of<E>((K + parts - 1) / parts);
    if (blocks > kMostBlocks) blocks = kMostBlocks;
  }

  // Scratch for products of at most this depth and as many columns.
  static int64_t scratch(int64_t K, int64_t N) {
    const int64_t deepest = depth_of<E>(K < kStripDepth ? K : kStripDepth);
    return (kRows + Strips(K, N).blocks * kLanes) * deepest;
  }
};

template <typename E, Left kLeft>
void multiply_strips(const Product<E, kLeft>& product, const OperandRows<E>& b, int64_t M,
                     E* scratch) {
  static_assert(tile_rows(1) == kTileRows);  // whole strips are whole tiles
  constexpr bool kColumns = kLeft == Left::columns;
  constexpr int kLanes = Strips<E>::kLanes;
  constexpr int64_t kRows = Strips<E>::kRows;
  const Strips<E> cut(product.K, product.N);
  const int64_t blocks = blocks_of<sum_t<E>>(product.N);
  for (int64_t block = 0; block < blocks; block += cut.blocks) {
    const int64_t abreast = blocks - block < cut.blocks ? blocks - block : cut.blocks;
    for (int64_t k = 0; k < product.K; k += cut.depth) {
      const int64_t K = product.K - k < cut.depth ? product.K - k : cut.depth;
      const int64_t depth = depth_of<E>(K);
      E* const strips = scratch;
      E* const panels = scratch + kRows * depth;
      const Columns<E> right = Columns<E>::packed(panels, K);
      pack_panels(b, k, K, product.N, {block, block + abreast}, panels);

      for (int64_t row = 0; row < M; row += kRows) {
        const int64_t rows = M - row < kRows ? M - row : kRows;
        int64_t whole = rows;  // strips of columns have as many as a tile, up to the last
        if constexpr (kColumns) {
          copy_columns(product.a + k * product.a_stride + row * Operand<E>::kGroup,
                       product.a_stride, rows, K, strips);
          whole -= rows % kTileRows;
        } else {
          copy_rows(product.a + row * product.a_stride + k, product.a_stride, rows, K, strips);
        }
        Product<E, kColumns ? Left::copied_columns : Left::copied_rows> part{
            strips,
            depth,
            right,
            K,
            product.c + row * product.c_stride + block * kLanes,
            product.c_stride,
            product.N - block * kLanes,
            product.add || k > 0};
        for_each_tile<1>(whole, {0, abreast}, part);
        part.a += whole * depth;
        part.c += whole * product.c_stride;
        for_each_tile<1>(rows - whole, {0, abreast}, part);
      }
    }
  }
}

// The product for M rows and all columns, where b is given as rows.
template <typename E, Left kLeft>
void multiply_rows(const Product<E, kLeft>& product, const OperandRows<E>& b, int64_t M,
                   E* scratch) {
  if (worth_copying<E>(M, product.K, product.N)) {
    multiply_strips(product, b, M, scratch);
  } else {
    multiply_parts(product, b, M, scratch);
  }
}

// Scratch that this needs for products of at most M rows, this depth and as many columns.
template <typename E>
int64_t scratch_of_product(int64_t M, int64_t K, int64_t N) {
  const int64_t parts = part_size<E>(K);
  if (!worth_copying<E>(M, K, N)) return parts;
  const int64_t strips = Strips<E>::scratch(K, N);
  return strips > parts ? strips : parts;
}
