// What is decided of a layer's forward pass before it begins (forward_rules.h): where its weights
// are read, when its input products are made, and the memory of it all.

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
  bool begins_back = false;    // the first step goes through the blocks in falling order
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
