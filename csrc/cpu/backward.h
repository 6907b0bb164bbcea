// The backward pass of one layer in one direction.
//
// The steps run in the order in which gradients flow, in chunks. Within a chunk the time loop
// mirrors the forward one: dh of a tile of rows x units is the product of the later step's deltas
// with w_hh, and the cell turns it into this step's deltas while it is in registers or L1. After
// the chunk its deltas, still in cache, give the gradients of the weights and of x as large
// products. Where the layer below runs at the same time (layers.h), it gets its gradients, those of
// x, every few steps instead.
//
// The gradients of the weights are deltas^T x and deltas^T h_prev: the deltas are read as they lie
// (or, where products read groups of k, from a copy whose rows are grouped) or copied in strips, x
// and h_prev are packed part by part, and the sums go straight to where the caller wants them.

// A chunk's deltas: few enough bytes to stay in cache, but at least as many rows as make the
// products long. Chunks are of about even size, since each reads all weights and gradients (LSTM
// H = 1024, T = 25, B = 32, AVX2, backward: 441 ms with three of 256 rows and one of 32, 421 with
// even ones, 413 with two).
constexpr int64_t kChunkBytes = 3 << 20;
constexpr int64_t kChunkRows = 512;

// The rows of a chunk, of N in all in steps of up to B, where `most` would stay in cache.
constexpr int64_t rows_of_chunks(int64_t N, int64_t B, int64_t most) {
  if (most < kChunkRows) most = kChunkRows;
  if (most < B) most = B;
  if (N <= most) return N;
  const int64_t whole = most / B * B;  // of steps
  return (even_chunks(N, whole) + B - 1) / B * B;
}

// Where one row of a step reads and writes.
template <typename E>
struct BackwardRow {
  using T = sum_t<E>;

  const E* later;     // deltas of the sequence's later step, null where there is none
  const T* grad_out;  // [O] or zeros
  const T* carry_in;  // [O]: what h gets beside grad_out and the product
  T* carry;           // [O], written where the cell carries
  const T* dc_in;     // [H]
  T* dc;              // [H]
  const T* gates;     // [saved, H]
  const T* c;
  const T* c_prev;
  const E* h;
  const E* h_prev;
  E* delta;     // [kSums, H]
  const E* dp;  // [P]: gradient of the projected h
  E* h_full;    // [H]: h before its projection
};

template <typename Cell, typename E>
struct BackwardPlan {
  using T = sum_t<E>;

  const BackwardArgs<E>& args;
  Neighbours neighbours;
  int64_t N = 0;
  int64_t chunk_rows = 0;
  bool want_weights = false;

  T* zeros = nullptr;  // [H]
  E* none = nullptr;   // [H]: zeros that stand for an h0
  E* packed_hh = nullptr;
  Columns<E> hh{};        // w_hh, G*H deep
  const E* ih = nullptr;  // w_ih as PackedColumns have it, or null
  E* packed_hr = nullptr;
  Columns<E> hr{};             // w_hr, P deep
  T* carry = nullptr;          // [B, O]
  T* dc = nullptr;             // [B, H]
  E* deltas = nullptr;         // [chunk_rows, kSums * H], rows delta_stride() apart
  E* boundary = nullptr;       // [B, G*H]: deltas of the chunk before's last step
  E* dp = nullptr;             // [chunk_rows, P]
  E* h_full = nullptr;         // [chunk_rows, H]
  const E** h_prev = nullptr;  // [chunk_rows]
  // Deltas and dp by columns, as the gradients of the weights read them; themselves where a group
  // is one element.
  E* delta_columns = nullptr;
  E* dp_columns = nullptr;
  // Of each thread:
  BackwardRow<E>* rows = nullptr;  // [B]
  E* part = nullptr;               // what a product packs and copies

  int64_t delta_stride() const { return fused_rnn::delta_stride<E>(Cell::kSums * args.shape.H); }
  int64_t dp_stride() const {
    return Operand<E>::kGroup == 1 ? args.shape.P : blocks_of<T>(args.shape.P) * Vec<T>::kLanes;
  }
  int64_t depth() const { return Cell::kGates * args.shape.H; }
};

// dh of a tile, then the cell. Without projection the product is with w_hh, of the later step's
// deltas; with one, dp is there already and the product is with w_hr.
template <typename Cell, typename E, bool kProjected>
struct BackwardStep {
  using T = sum_t<E>;

  const BackwardPlan<Cell, E>& plan;
  const BackwardRow<E>* rows;
  int64_t K;  // 0 where no row has a later step
  bool back;  // the blocks come in falling order

  static constexpr bool kActivates = false;

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    if constexpr (R > 1 && R * NB > kFinishedInRegisters) {
      large_tile<R, NB>(row, block);
    } else {
      Vec<T> sum[R][NB][1];
      const RowsAnywhere<E, R> a = begin(row, sum);
      multiply<InOrder<1>>(sum, a, K, right().at(block), right().k_stride, right().block_stride, 0,
                           right().from_memory);
      finish_tile(*this, row, block, sum);
    }
  }

  // What the cell wants after the product is in L3 or memory, and no prefetcher of the machine
  // follows so many rows. A function of its own, for one call a tile, since among other tiles the
  // compiler runs out of registers for the rows' addresses.
  template <int R, int NB>
  __attribute__((noinline)) void large_tile(int64_t row, int64_t block) {
    using V = Vec<T>;
    constexpr int kLine = kCacheLine / static_cast<int>(sizeof(T));
    constexpr int kLines = (NB * V::kLanes + kLine - 1) / kLine;
    V sum[R][NB][1];
    const RowsAnywhere<E, R> a = begin(row, sum);
    multiply_in_pieces<InOrder<1>, R * kLines>(
        sum, a, K, right().at(block), right().k_stride, right().block_stride, right().from_memory,
        [&](int piece) __attribute__((always_inline)) {
          const int64_t unit = block * V::kLanes + piece % kLines * kLine;
          call_for(rows[row + piece / kLines], back ? unit : unit + kLine - 1);
        });
    finish_tile(*this, row, block, sum);
  }

  template <int R, int NB>
  FUSED_RNN_INLINE RowsAnywhere<E, R> begin(int64_t row, Vec<T> (&sum)[R][NB][1]) const {
    RowsAnywhere<E, R> a;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      a.row[r] = kProjected ? rows[row + r].dp : rows[row + r].later;
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) sum[r][b][0] = Vec<T>::zero();
    }
    return a;
  }

  FUSED_RNN_INLINE const Columns<E>& right() const { return kProjected ? plan.hr : plan.hh; }

  // The cache lines of what `finish` reads and writes of a unit, but what is there from the later
  // step: dc, carry, and c, its c_prev.
  FUSED_RNN_INLINE void call_for(const BackwardRow<E>& at, int64_t unit) const {
    const int64_t H = plan.args.shape.H;
    if (unit >= H) unit = H - 1;
    if constexpr (!kProjected) __builtin_prefetch(at.grad_out + unit);
#pragma GCC unroll 8
    for (int s = 0; s < Cell::kSaved; ++s) __builtin_prefetch(at.gates + s * H + unit);
    if constexpr (Cell::kHasState) __builtin_prefetch(at.c_prev + unit);
    if constexpr (Cell::kReadsOutput) __builtin_prefetch(at.h + unit);
    if constexpr (Cell::kReadsPrevious) __builtin_prefetch(at.h_prev + unit);
#pragma GCC unroll 8
    for (int s = 0; s < Cell::kSums; ++s) __builtin_prefetch(at.delta + s * H + unit, 1);
    if constexpr (kProjected) __builtin_prefetch(at.h_full + unit, 1);
  }

  FUSED_RNN_INLINE void finish(int64_t row, int64_t block, const Vec<T> (&sum)[1]) {
    using V = Vec<T>;
    const BackwardRow<E>& at = rows[row];
    const int64_t H = plan.args.shape.H;
    const int64_t unit = block * V::kLanes;
    const int n = lanes_of<T>(block, H);
    CellGradient<T> grad{sum[0], V::zero()};
    if constexpr (!kProjected) {
      grad.dh = grad.dh + V::load(at.grad_out + unit, n) + V::load(at.carry_in + unit, n);
    }
    CellOutcome<T> was;
#pragma GCC unroll 8
    for (int s = 0; s < Cell::kSaved; ++s) was.saved[s] = V::load(at.gates + s * H + unit, n);
    if constexpr (Cell::kHasState) {
      grad.dc = V::load(at.dc_in + unit, n);
      was.c = V::load(at.c + unit, n);
      was.c_prev = V::load(at.c_prev + unit, n);
    }
    if constexpr (Cell::kReadsOutput) was.h = Operand<E>::widened(at.h + unit, n);
    if constexpr (Cell::kReadsPrevious) was.h_prev = Operand<E>::widened(at.h_prev + unit, n);
    V delta[Cell::kSums];
    V h_full = V::zero();
    const CellGradient<T> prev = Cell::backward(was, grad, delta, h_full);
#pragma GCC unroll 8
    for (int s = 0; s < Cell::kSums; ++s) Operand<E>::narrow(delta[s], at.delta + s * H + unit, n);
    if constexpr (Cell::kHasState) prev.dc.store(at.dc + unit, n);
    if constexpr (Cell::kCarries) prev.dh.store(at.carry + unit, n);
    if constexpr (kProjected) Operand<E>::narrow(h_full, at.h_full + unit, n);
  }
};

// to[row] = later[row] w_hh + grad_out[row] + carry_in[row]: the gradient of a row's h_prev.
template <typename E, typename To>
struct HiddenGradient {
  using T = sum_t<E>;

  const Columns<E>& hh;
  const BackwardRow<E>* rows;
  int64_t K;  // 0 where no row has a later step
  To* to;
  int64_t O;

  static constexpr bool kActivates = false;

  template <int R, int NB>
  FUSED_RNN_INLINE void tile(int64_t row, int64_t block) {
    Vec<T> sum[R][NB][1];
    RowsAnywhere<E, R> a;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      a.row[r] = rows[row + r].later;
#pragma GCC unroll 8
      for (int b = 0; b < NB; ++b) sum[r][b][0] = Vec<T>::zero();
    }
    multiply<InOrder<1>>(sum, a, K, hh.at(block), hh.k_stride, hh.block_stride, 0, hh.from_memory);
    finish_tile(*this, row, block, sum);
  }

  FUSED_RNN_INLINE void finish(int64_t row, int64_t block, const Vec<T> (&sum)[1]) {
    using V = Vec<T>;
    const int64_t unit = block * V::kLanes;
    const int n = lanes_of<T>(block, O);
    const V dh =
        sum[0] + V::load(rows[row].grad_out + unit, n) + V::load(rows[row].carry_in + unit, n);
    Operand<To>::narrow(dh, to + row * O + unit, n);
  }
};

// The steps of one chunk: those from `steps` on whose rows fit. `lowest` is the chunk's first row
// in the order of x, which the buffers of the chunk follow.
template <typename Cell, typename E>
struct Chunk {
  Steps steps;
  int64_t count;   // of steps
  int64_t lowest;  // first row
  int64_t size;    // rows

  // The chunk that begins at `steps`, done + 1 of shape.T steps.
  static Chunk from(const Steps& steps, int64_t done, const BackwardPlan<Cell, E>& plan) {
    Chunk chunk{steps, 0, steps.now().offset, 0};
    Steps walk = steps;
    while (done + chunk.count < plan.args.shape.T) {
      const Step step = walk.now();
      if (chunk.count > 0 && chunk.size + step.batch > plan.chunk_rows) break;
      if (step.offset < chunk.lowest) chunk.lowest = step.offset;
      chunk.size += step.batch;
      ++chunk.count;
      if (done + chunk.count < plan.args.shape.T) walk.next();
    }
    return chunk;
  }
};

// grad_x of some of the chunk's rows: deltas of the sums that x is in, times w_ih.
template <typename Cell, typename E>
void input_products(const BackwardPlan<Cell, E>& plan, const Chunk<Cell, E>& chunk, Range rows) {
  const BackwardArgs<E>& args = plan.args;
  const int64_t I = args.shape.I;
  const int64_t H = args.shape.H;
  bool add = args.add_to_grad_x;
  int64_t gate = 0;  // of w_ih
  const E* packed = plan.ih;
  for (const DeltaColumns& set : Cell::kColumns) {
    if (!set.x) continue;
    const int64_t gates = set.end - set.begin;
    Product<E> product{plan.deltas + rows.begin * plan.delta_stride() + set.begin * H,
                       plan.delta_stride(),
                       {},
                       gates * H,
                       args.grad_x + (chunk.lowest + rows.begin) * I,
                       I,
                       I,
                       add};
    if (packed != nullptr) {
      product.b = Columns<E>::packed(packed, product.K);
      product.b.from_memory = comes_from_memory<E>(product.K, I);
      multiply_matrices(product, rows.size(), {0, blocks_of<sum_t<E>>(I)});
      packed += PackedColumns<Cell, E>::size(I, product.K);
    } else {
      multiply_rows(product, {args.weights.w_ih + gate * H * I, I}, rows.size(), plan.part);
    }
    gate += gates;
    add = true;
  }
}

template <typename Cell, typename E>
void backward_steps(const BackwardPlan<Cell, E>& plan, const Chunk<Cell, E>& chunk, int64_t done,
                    int64_t batch_before, const Share& mine, Barrier::Member& member) {
  using T = sum_t<E>;
  const BackwardArgs<E>& args = plan.args;
  const SequenceShape& shape = args.shape;
  const int64_t H = shape.H;
  const int64_t O = shape.hidden();
  const int64_t D = plan.delta_stride();
  const int64_t depth = plan.depth();
  Steps steps = chunk.steps;
  Neighbours neighbours = plan.neighbours;
  Range fresh{0, 0};  // rows of the chunk whose gradient of x the next layer waits for
  int64_t later_batch = batch_before;
  const E* later_deltas = plan.boundary;  // of the later step, rows later_stride apart
  int64_t later_stride = depth;

  for (int64_t s = 0; s < chunk.count; ++s) {
    const Step step = steps.now();
    const int64_t batch = mine.rows.end < step.batch ? mine.rows.end : step.batch;
    const int64_t rows = batch > mine.rows.begin ? batch - mine.rows.begin : 0;
    const Step prev = steps.following();  // the step before this one in time
    E* const deltas = plan.deltas + (step.offset - chunk.lowest) * D;
    neighbours.await(done + s + 1);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = mine.rows.begin + i;
      const int64_t n = step.offset + row;
      const int64_t local = n - chunk.lowest;
      const bool has_later = row < later_batch;
      const bool has_prev = row < prev.batch;
      BackwardRow<E>& at = plan.rows[i];
      at.later = has_later ? later_deltas + row * later_stride : nullptr;
      at.grad_out =
          args.grad_out != nullptr ? args.grad_out + n * args.grad_out_stride : plan.zeros;
      if constexpr (Cell::kCarries) at.carry = plan.carry + row * O;
      at.carry_in = has_later                 ? (Cell::kCarries ? at.carry : plan.zeros)
                    : args.grad_hn != nullptr ? args.grad_hn + row * O
                                              : plan.zeros;
      at.h = args.out + n * args.out_stride;
      at.h_prev = has_prev             ? args.out + (prev.offset + row) * args.out_stride
                  : args.h0 != nullptr ? args.h0 + row * O
                                       : plan.none;
      if constexpr (Cell::kSaved > 0) at.gates = args.gates + n * Cell::kSaved * H;
      at.delta = deltas + row * D;
      if (shape.P > 0) {
        at.dp = plan.dp + local * shape.P;
        at.h_full = plan.h_full + local * H;
      }
      if constexpr (Cell::kHasState) {
        at.dc = plan.dc + row * H;
        at.dc_in = has_later                 ? at.dc
                   : args.grad_cn != nullptr ? args.grad_cn + row * H
                                             : plan.zeros;
        at.c = args.cells + n * H;
        at.c_prev = has_prev             ? args.cells + (prev.offset + row) * H
                    : args.c0 != nullptr ? args.c0 + row * H
                                         : plan.zeros;
      }
      if (plan.want_weights && mine.units.begin == 0) plan.h_prev[local] = at.h_prev;
    }

    // Rows with a later step, then those that end with this one: not even zeros may stand in for
    // deltas that are not there, since w_hh may hold infinities.
    const int64_t later_rows = later_batch - mine.rows.begin;
    const int64_t going_on = later_rows < 0 ? 0 : later_rows < rows ? later_rows : rows;
    const auto each_kind = [&](auto&& run) {
      for (const bool later : {true, false}) {
        const int64_t first = later ? 0 : going_on;
        run(plan.rows + first, first, later ? going_on : rows - going_on, later ? depth : 0);
      }
    };
    const bool back = s % 2 != 0;
    bool finished = false;
    if constexpr (Cell::kProjects) {
      if (shape.P > 0) {
        E* const dp = plan.dp + (step.offset + mine.rows.begin - chunk.lowest) * shape.P;
        each_kind([&](const BackwardRow<E>* of, int64_t first, int64_t count, int64_t K) {
          HiddenGradient<E, E> gradient{plan.hh, of, K, dp + first * O, O};
          for_each_tile<1>(count, mine.hidden, gradient, back);
        });
        if (!mine.alone) member.wait();
        BackwardStep<Cell, E, true> tiles{plan, plan.rows, shape.P, back};
        for_each_tile<1>(rows, mine.units, tiles, back);
        finished = true;
      }
    }
    if (!finished) {
      each_kind([&](const BackwardRow<E>* of, int64_t, int64_t count, int64_t K) {
        BackwardStep<Cell, E, false> tiles{plan, of, K, back};
        for_each_tile<1>(count, mine.units, tiles, back);
      });
    }
    if (!mine.alone) member.wait();

    // Sequences that begin with this step: on to their initial states.
    const int64_t first = prev.batch > mine.rows.begin ? prev.batch : mine.rows.begin;
    if (first < batch) {
      if (args.grad_h0 != nullptr) {
        BackwardRow<E>* begun = plan.rows + (first - mine.rows.begin);
        for (int64_t i = 0; i < batch - first; ++i) {
          begun[i].later = begun[i].delta;
          begun[i].grad_out = plan.zeros;
          begun[i].carry_in = Cell::kCarries ? begun[i].carry : plan.zeros;
        }
        HiddenGradient<E, T> gradient{plan.hh, begun, depth, args.grad_h0 + first * O, O};
        for_each_tile<1>(batch - first, mine.hidden, gradient);
      }
      if (Cell::kHasState && args.grad_c0 != nullptr) {
        const Range own = columns_of<T>(mine.units, H);
        for (int64_t row = first; row < batch; ++row) {
          for (int64_t u = own.begin; u < own.end; ++u)
            args.grad_c0[row * H + u] = plan.dc[row * H + u];
        }
      }
    }

    // The layer below goes on with these.
    if (neighbours.has_after()) {
      const int64_t first_row = step.offset - chunk.lowest;
      if (fresh.size() == 0) fresh = {first_row, first_row};
      if (first_row < fresh.begin) fresh.begin = first_row;
      if (first_row + step.batch > fresh.end) fresh.end = first_row + step.batch;
      if ((s + 1) % kStepsBehind == 0 || s + 1 == chunk.count) {
        input_products(plan, chunk, fresh);
        fresh = {0, 0};
        neighbours.reach(done + s + 1);
      }
    }

    later_batch = step.batch;
    later_deltas = deltas;
    later_stride = D;
    if (done + s + 1 < shape.T) steps.next();
  }
}

// This thread's part of the chunk's deltas and dp by columns, in groups of rows.
template <typename Cell, typename E>
void group_columns(const BackwardPlan<Cell, E>& plan, const Chunk<Cell, E>& chunk, int id,
                   int team) {
  constexpr int kGroup = Operand<E>::kGroup;
  const Range groups = share(depth_of<E>(chunk.size) / kGroup, team, id);
  const auto pack = [&](const E* rows, int64_t stride, int64_t columns, E* to, int64_t to_stride) {
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const int64_t left = chunk.size - group * kGroup;
      for (int64_t block = 0; block < blocks_of<sum_t<E>>(columns); ++block) {
        pack_columns<1, E>({rows, stride}, group * kGroup, left < kGroup ? left : kGroup, columns,
                           block, to + group * kGroup * to_stride + block * Operand<E>::kElements);
      }
    }
  };
  pack(plan.deltas, plan.delta_stride(), Cell::kSums * plan.args.shape.H, plan.delta_columns,
       plan.delta_stride());
  if (plan.dp_columns != nullptr)
    pack(plan.dp, plan.args.shape.P, plan.args.shape.P, plan.dp_columns, plan.dp_stride());
}

// Scratch that gradients_of_weights needs for so many rows.
template <typename Cell, typename E>
int64_t scratch_of_weights(const SequenceShape& shape, int64_t rows) {
  return scratch_of_product<E>(Cell::kSums * shape.H, rows, shape.I > shape.H ? shape.I : shape.H);
}

// The rows of a chunk whose h_prev may be other than zeros: not those of the first step of a dense
// sequence without an h0. In whole groups.
template <typename Cell, typename E>
Range rows_with_previous(const BackwardPlan<Cell, E>& plan, const Chunk<Cell, E>& chunk) {
  constexpr int64_t kGroup = Operand<E>::kGroup;
  const SequenceShape& shape = plan.args.shape;
  const Range all{0, chunk.size};
  if (plan.args.h0 != nullptr || shape.batch_sizes != nullptr) return all;
  if (shape.reverse) {
    const int64_t last = plan.N - shape.B - chunk.lowest;
    return last < chunk.size ? Range{0, depth_of<E>(last)} : all;
  }
  return chunk.lowest == 0 ? Range{shape.B / kGroup * kGroup, chunk.size} : all;
}

// This thread's part of the gradients of the weights.
template <typename Cell, typename E>
void gradients_of_weights(const BackwardPlan<Cell, E>& plan, const Chunk<Cell, E>& chunk, bool add,
                          int id, int team) {
  using T = sum_t<E>;
  const BackwardArgs<E>& args = plan.args;
  const int64_t H = args.shape.H;
  const int64_t I = args.shape.I;
  const int64_t O = args.shape.hidden();
  const int64_t P = args.shape.P;
  const Range all{0, chunk.size};
  const OperandRows<E> x{args.x + chunk.lowest * args.x_stride, args.x_stride};
  const OperandRows<E> h_prev{nullptr, 0, plan.h_prev};
  const auto from = [](T* grad, int64_t i) { return grad != nullptr ? grad + i : nullptr; };

  constexpr int kSets = sizeof(Cell::kColumns) / sizeof(DeltaColumns);
  static_assert(kSets + (Cell::kProjects ? 1 : 0) <= WeightProducts<E>::kMost);
  WeightProducts<E> products(chunk.size, add);
  int64_t x_row = 0;  // of w_ih and w_hh, in the order of the deltas
  int64_t h_row = 0;
  for (const DeltaColumns& set : Cell::kColumns) {
    const int64_t begin = set.begin * H;
    ProductsOfColumns<E> of{};
    of.rows = plan.deltas + begin;
    of.left = plan.delta_columns + begin * Operand<E>::kGroup;
    of.stride = plan.delta_stride();
    of.columns = (set.end - set.begin) * H;
    if (set.x) {
      of.sums[0] = from(args.grad_b_ih, x_row);
      of.with[0] = {x, all, I, from(args.grad_w_ih, x_row * I)};
      x_row += of.columns;
    }
    if (set.h) {
      of.sums[1] = from(args.grad_b_hh, h_row);
      of.with[1] = {h_prev, rows_with_previous(plan, chunk), O, from(args.grad_w_hh, h_row * O)};
      h_row += of.columns;
    }
    products.append(of);
  }
  if (args.grad_w_hr != nullptr) {
    products.append({plan.dp,
                     plan.dp_columns,
                     plan.dp_stride(),
                     P,
                     {},
                     {{{plan.h_full, H}, all, H, args.grad_w_hr}, {}}});
  }
  products.run(id, team, plan.part);
}

template <typename Cell, typename E>
void backward_layer(const BackwardArgs<E>& args, const Threads& threads,
                    const Neighbours& neighbours = {}) {
  using T = sum_t<E>;
  constexpr int kLanes = Vec<T>::kLanes;
  constexpr bool kGrouped = Operand<E>::kGroup > 1;
  const SequenceShape& shape = args.shape;
  const int64_t H = shape.H;
  const int64_t P = shape.P;
  const int64_t O = shape.hidden();

  BackwardPlan<Cell, E> plan{args, neighbours};
  const Steps first_step(shape, true);
  plan.N = first_step.rows();
  const int64_t D = plan.delta_stride();
  const int64_t depth = plan.depth();
  plan.want_weights = args.grad_w_ih != nullptr || args.grad_w_hh != nullptr ||
                      args.grad_b_ih != nullptr || args.grad_b_hh != nullptr ||
                      args.grad_w_hr != nullptr;
  plan.chunk_rows =
      rows_of_chunks(plan.N, shape.B, kChunkBytes / (D * static_cast<int64_t>(sizeof(E))));

  const int64_t hidden_blocks = blocks_of<T>(O);
  const Split wanted = split_work<Cell, E>(shape, threads.limit);
  const bool use_hh = shape.T > 1 || args.grad_h0 != nullptr;
  const bool pack_hh =
      args.packed == nullptr && use_hh && worth_packing<E>(O, shape.T * tiles_of(shape.B));
  const bool pack_hr = P > 0;

  // What the products for the gradients of x and of the weights need.
  const int64_t for_x =
      args.grad_x != nullptr ? scratch_of_product<E>(plan.chunk_rows, depth, shape.I) : 0;
  const int64_t for_weights =
      plan.want_weights ? scratch_of_weights<Cell, E>(shape, plan.chunk_rows) : 0;
  const int64_t part = for_x > for_weights ? for_x : for_weights;
  const auto lay_out = [&](Arena arena) {
    plan.zeros = arena.take<T>(H);
    plan.none = arena.take<E>(H);
    plan.packed_hh = arena.take<E>(pack_hh ? hidden_blocks * depth_of<E>(depth) * kLanes : 0);
    plan.packed_hr = arena.take<E>(pack_hr ? blocks_of<T>(H) * depth_of<E>(P) * kLanes : 0);
    plan.carry = arena.take<T>(Cell::kCarries ? shape.B * O : 0);
    plan.dc = arena.take<T>(Cell::kHasState ? shape.B * H : 0);
    plan.deltas = args.deltas != nullptr ? args.deltas : arena.take<E>(plan.chunk_rows * D);
    plan.boundary = arena.take<E>(shape.B * depth);
    plan.dp = arena.take<E>(P > 0 ? plan.chunk_rows * P : 0);
    plan.h_full = arena.take<E>(P > 0 ? plan.chunk_rows * H : 0);
    plan.h_prev = arena.take<const E*>(plan.want_weights ? plan.chunk_rows : 0);
    const int64_t grouped = kGrouped && plan.want_weights ? depth_of<E>(plan.chunk_rows) : 0;
    plan.delta_columns = kGrouped ? arena.take<E>(grouped * D) : plan.deltas;
    plan.dp_columns = P == 0     ? nullptr
                      : kGrouped ? arena.take<E>(grouped * plan.dp_stride())
                                 : plan.dp;
    // Threads with different units of the same rows have tables of their own.
    plan.rows = arena.take<BackwardRow<E>>(wanted.units * shape.B);
    plan.part = arena.take<E>(wanted.rows * wanted.units * part);
    return arena.used();
  };
  Workspace workspace(lay_out(Arena(nullptr)));
  lay_out(Arena(workspace.block()));
  for (int64_t i = 0; i < H; ++i) plan.zeros[i] = T{};
  for (int64_t i = 0; i < H; ++i) plan.none[i] = E{};
  plan.hh = Columns<E>::packed(plan.packed_hh, depth);
  if (args.packed != nullptr) {
    PackedColumns<Cell, E> weights;
    lay_out_packed(shape, const_cast<std::byte*>(args.packed), weights);
    plan.hh = Columns<E>::packed(weights.h, depth);
    plan.ih = weights.x;
  } else if constexpr (!kGrouped) {
    if (!pack_hh) plan.hh = Columns<E>::in_place(args.weights.w_hh, O);
  }
  plan.hh.from_memory = comes_from_memory<E>(depth, O);
  plan.hr = Columns<E>::packed(plan.packed_hr, P);
  plan.hr.from_memory = comes_from_memory<E>(P, H);

  Barrier barrier(wanted.rows * wanted.units);
  auto body = [&](int id, int team) {
    Barrier::Member member(barrier, id, team);
    const auto mine_of = [&](int64_t columns) { return share(blocks_of<T>(columns), team, id); };
    if (pack_hh) pack_blocks(args.weights.w_hh, O, depth, mine_of(O), plan.packed_hh);
    if (pack_hr) pack_blocks(args.weights.w_hr, H, P, mine_of(H), plan.packed_hr);
    member.wait();

    const Split split = wanted.among(team);
    const Share mine = share_of<T>(shape, split, id, team);
    BackwardPlan<Cell, E> own = plan;
    own.rows += (id % split.units) * shape.B + mine.rows.begin;
    own.part += id * part;

    Steps steps = first_step;
    int64_t batch_before = 0;
    for (int64_t done = 0; done < shape.T;) {
      const Chunk<Cell, E> chunk = Chunk<Cell, E>::from(steps, done, plan);
      backward_steps(own, chunk, done, batch_before, mine, member);
      member.wait();
      if (kGrouped && plan.want_weights) {
        group_columns(own, chunk, id, team);
        member.wait();
      }
      if (plan.want_weights) gradients_of_weights(own, chunk, done > 0, id, team);
      if (args.grad_x != nullptr && !neighbours.has_after())
        input_products(own, chunk, share(chunk.size, team, id));

      for (int64_t i = 1; i < chunk.count; ++i) steps.next();
      const Step last = steps.now();
      done += chunk.count;
      if (done < shape.T) {
        const Range kept = share(last.batch, team, id);
        for (int64_t row = kept.begin; row < kept.end; ++row) {
          const E* from = plan.deltas + (last.offset - chunk.lowest + row) * D;
          for (int64_t i = 0; i < depth; ++i) plan.boundary[row * depth + i] = from[i];
        }
        batch_before = last.batch;
        steps.next();
        member.wait();
      }
    }
  };
  run_team(threads, wanted.rows * wanted.units, body);
}

// The gradients of the weights alone, of B rows whose deltas are there.
template <typename Cell, typename E>
void weights_of_deltas(const BackwardArgs<E>& args, bool add, const Threads& threads) {
  constexpr bool kGrouped = Operand<E>::kGroup > 1;
  const SequenceShape& shape = args.shape;
  const Chunk<Cell, E> chunk{Steps(shape, false), 1, 0, shape.B};
  BackwardPlan<Cell, E> plan{args, {}};
  plan.deltas = args.deltas;

  const Split wanted = split_work<Cell, E>(shape, threads.limit);
  const int64_t part = scratch_of_weights<Cell, E>(shape, shape.B);
  const auto lay_out = [&](Arena arena) {
    plan.h_prev = arena.take<const E*>(shape.B);
    plan.delta_columns =
        kGrouped ? arena.take<E>(depth_of<E>(shape.B) * plan.delta_stride()) : plan.deltas;
    plan.part = arena.take<E>(wanted.rows * wanted.units * part);
    return arena.used();
  };
  Workspace workspace(lay_out(Arena(nullptr)));
  lay_out(Arena(workspace.block()));
  for (int64_t row = 0; row < shape.B; ++row) plan.h_prev[row] = args.h0 + row * shape.H;

  Barrier barrier(wanted.rows * wanted.units);
  auto body = [&](int id, int team) {
    Barrier::Member member(barrier, id, team);
    BackwardPlan<Cell, E> own = plan;
    own.part += id * part;
    if (kGrouped) {
      group_columns(own, chunk, id, team);
      member.wait();
    }
    gradients_of_weights(own, chunk, add, id, team);
  };
  run_team(threads, wanted.rows * wanted.units, body);
}
