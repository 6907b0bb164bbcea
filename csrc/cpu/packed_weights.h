// The weights of a layer as tiles of the forward pass read them: panels of the gates of a block of
// units, and the sums of biases that the cell's sums begin with. They are made by a call for
// itself, or once for many calls (kernels.h, `pack`).
template <typename Cell, typename E>
struct PackedWeights {
  using T = sum_t<E>;
  static constexpr int kLanes = Vec<T>::kLanes;
  // Gates side by side in a panel.
  static constexpr int kAbreast = vectors_abreast(Cell::kGates);
  static constexpr int kStride = kAbreast * Operand<E>::kElements;

  // Whether the weights have panels here, which pack_all_gates makes, or the forward pass as it
  // comes to them. If not, they are read where they are, or those of x have panels of who makes the
  // input products (InputProducts in input_products.h).
  bool packs_x = true;
  bool packs_h = true;
  // Whether packing w_hh looks for infinities and NaN in it. If there are none, its product with an
  // h of zeros is zeros, and need not be computed.
  bool looks_at_h = true;

  // If not 0, the panels of the last units are tails of so many vectors (tail.h).
  int tail = 0;

  // Panels have k in whole groups (simd/operand.h).
  E* x = nullptr;     // [blocks][G / kAbreast][I][kAbreast][kLanes]; tails [I][tail][kLanes]
  E* h = nullptr;     // [blocks][G / kAbreast][O][kAbreast][kLanes]; tails [O][tail][kLanes]
  T* bias = nullptr;  // [blocks][kSums][kLanes]
  T* zeros_times_h = nullptr;  // [blocks][kLanes]: zeros, or some NaN where a panel is not finite
  E* projection = nullptr;     // [blocks of P][H][kLanes]

  // Elements of a block's panel, and of a part of it.
  static int64_t panel(int64_t K) { return depth_of<E>(K) * Cell::kGates * kLanes; }
  static int64_t part(int64_t K) { return depth_of<E>(K) * kAbreast * kLanes; }

  void lay_out(Arena& arena, const SequenceShape& shape) {
    const int64_t blocks = blocks_of<T>(shape.H);
    x = arena.take<E>(packs_x ? blocks * panel(shape.I) : 0);
    h = arena.take<E>(packs_h ? blocks * panel(shape.hidden()) : 0);
    bias = arena.take<T>(blocks * Cell::kSums * kLanes);
    zeros_times_h = arena.take<T>(packs_h && looks_at_h ? blocks * kLanes : 0);
    projection = arena.take<E>(blocks_of<T>(shape.P) * depth_of<E>(shape.H) * kLanes);
  }

  // One part of `team` of the panels of the gates,
  void pack_all_gates(const SequenceShape& shape, const LayerWeights<E>& w, int64_t team,
                      int64_t part_id) const {
    const Range units = share(blocks_of<T>(shape.H), team, part_id);
    for (int64_t block = units.begin; block < units.end; ++block) {
      if (packs_x) pack_x(shape, w, block, x + block * panel(shape.I));
      if (packs_h) pack_h(shape, w, block);
    }
  }

  // and of the biases and the projection.
  void pack_rest(const SequenceShape& shape, const LayerWeights<E>& w, int64_t team,
                 int64_t part_id) const {
    const Range units = share(blocks_of<T>(shape.H), team, part_id);
    for (int64_t block = units.begin; block < units.end; ++block) add_biases(shape.H, w, block);
    const Range projected = share(blocks_of<T>(shape.P), team, part_id);
    for (int64_t block = projected.begin; block < projected.end; ++block) {
      const int n = lanes_of<T>(block, shape.P);
      const E* rows[kLanes] = {};
      for (int j = 0; j < n; ++j) rows[j] = w.w_hr + (block * kLanes + j) * shape.H;
      transpose_strip(rows, n, shape.H, projection + block * depth_of<E>(shape.H) * kLanes,
                      Operand<E>::kElements);
    }
  }

  void pack_x(const SequenceShape& shape, const LayerWeights<E>& w, int64_t block, E* to) const {
    pack_block(w.w_ih, shape.H, shape.I, block, to, NoNotice{});
  }

  void pack_h(const SequenceShape& shape, const LayerWeights<E>& w, int64_t block) const {
    const int64_t O = shape.hidden();
    E* const to = h + block * panel(O);
    if (!looks_at_h) return pack_block(w.w_hh, shape.H, O, block, to, NoNotice{});
    TimesZero<E> times_zero;
    pack_block(w.w_hh, shape.H, O, block, to, times_zero);
    times_zero.sum().store(zeros_times_h + block * kLanes);
  }

  // Calls for what packing a block of w reads, K deep.
  static void call_for_weights(CallsAhead& calls, const E* w, int64_t H, int64_t K, int64_t block) {
    for (int g = 0; g < Cell::kGates; ++g)
      calls.add(w + (g * H + block * kLanes) * K, lanes_of<T>(block, H) * K);
  }

  // Whether the products of an h of zeros with these blocks of w_hh are known to be zeros.
  bool zeros_stay(Range blocks) const {
    return packs_h && looks_at_h &&
           are_finite(zeros_times_h + blocks.begin * kLanes, blocks.size() * kLanes);
  }

 private:
  template <typename Notice>
  void pack_block(const E* w, int64_t H, int64_t K, int64_t block, E* to, Notice&& notice) const {
    if (tail > 0 && block + 1 == blocks_of<T>(H))
      return pack_tail(w, Cell::kGates, H, K, tail, to, notice);
    pack_gates(w, Cell::kGates, H, K, block, to, notice);
  }

  void add_biases(int64_t H, const LayerWeights<E>& w, int64_t block) const {
    T* const to = bias + block * Cell::kSums * kLanes;
    for (int i = 0; i < Cell::kSums * kLanes; ++i) to[i] = T(0);
    if (w.b_ih == nullptr) return;
    const int n = lanes_of<T>(block, H);
    for (int g = 0; g < Cell::kGates; ++g) {
      const int64_t row = g * H + block * kLanes;
      for (int j = 0; j < n; ++j) {
        to[Cell::XMap::at(g) * kLanes + j] += w.b_ih[row + j];
        to[Cell::HMap::at(g) * kLanes + j] += w.b_hh[row + j];
      }
    }
  }
};

// The weights of a layer without projection as the backward pass reads them, by columns. Made for
// many calls: a call for itself packs only what is worth it.
template <typename Cell, typename E>
struct PackedColumns {
  using T = sum_t<E>;
  static constexpr int kLanes = Vec<T>::kLanes;

  E* h = nullptr;  // [blocks of H][G*H][kLanes]
  E* x = nullptr;  // for each set of deltas that has x: [blocks of I][gates of the set * H][kLanes]

  void lay_out(Arena& arena, const SequenceShape& shape) {
    h = arena.take<E>(size(shape.H, Cell::kGates * shape.H));
    int64_t all = 0;
    for (const DeltaColumns& set : Cell::kColumns)
      all += set.x ? size(shape.I, depth(set, shape)) : 0;
    x = arena.take<E>(all);
  }

  void pack(const SequenceShape& shape, const LayerWeights<E>& w) {
    pack_blocks(w.w_hh, shape.H, Cell::kGates * shape.H, {0, blocks_of<T>(shape.H)}, h);
    int64_t row = 0;  // of w_ih
    E* to = x;
    for (const DeltaColumns& set : Cell::kColumns) {
      if (!set.x) continue;
      pack_blocks(w.w_ih + row * shape.I, shape.I, depth(set, shape), {0, blocks_of<T>(shape.I)},
                  to);
      row += depth(set, shape);
      to += size(shape.I, depth(set, shape));
    }
  }

  static int64_t depth(const DeltaColumns& set, const SequenceShape& shape) {
    return (set.end - set.begin) * shape.H;
  }
  // Elements of a product's panels.
  static int64_t size(int64_t columns, int64_t K) {
    return blocks_of<T>(columns) * Columns<E>::packed(nullptr, K).block_stride;
  }
};

// Either of them over a block of memory that begins at `block`; null only counts its bytes.
template <typename Packed>
size_t lay_out_packed(const SequenceShape& shape, std::byte* block, Packed& weights) {
  Arena arena(block);
  weights.lay_out(arena, shape);
  return arena.used();
}

template <typename Packed>
size_t packed_bytes(const SequenceShape& shape) {
  Packed weights;
  return lay_out_packed(shape, nullptr, weights);
}

template <typename Cell, typename E>
void pack_weights(const SequenceShape& shape, const LayerWeights<E>& from, std::byte* to) {
  PackedWeights<Cell, E> weights;
  weights.tail = tail_vectors<sum_t<E>>(Cell::kGates, shape.H, 1);
  lay_out_packed(shape, to, weights);
  weights.pack_all_gates(shape, from, 1, 0);
  weights.pack_rest(shape, from, 1, 0);
}

template <typename Cell, typename E>
void pack_columns_of_weights(const SequenceShape& shape, const LayerWeights<E>& from,
                             std::byte* to) {
  PackedColumns<Cell, E> weights;
  lay_out_packed(shape, to, weights);
  weights.pack(shape, from);
}
