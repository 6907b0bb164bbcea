// The forward pass of one layer in one direction: the time loop.
//
// The gates of a block of kLanes units stay together in a packed panel, so that a tile of rows x
// units x gates holds everything a cell needs: the cell is the epilogue of the product, applied to
// sums that are still in registers or L1. The product runs over x, then over h.
//
// Where a thread has only a few rows, reading w_ih again each step costs more than writing the sums
// once: there the input products of many steps are one product ahead of them (ahead.h).
//
// Packing reads and writes every weight once, which one step of few rows, two or three of
// fewer, or some of one row would not earn back: there the weights are read where they are, unless
// the caller has them packed.

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
  InputsAhead<Cell, E> ahead(plan, mine, steps);
  for (int64_t s = 0; s < shape.T; ++s, steps.next()) {
    const Step step = steps.now();
    const Step next = steps.following();
    const int64_t batch = mine.rows.end < step.batch ? mine.rows.end : step.batch;
    const int64_t rows = batch > mine.rows.begin ? batch - mine.rows.begin : 0;

    if (!plan.ahead) {
      await_input(s + 1);
    } else if (s == ahead.until()) {
      ahead.next(await_input);
    }
    const T* const sums_ahead = plan.ahead ? ahead.take(rows) : nullptr;

    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = mine.rows.begin + i;
      const int64_t n = step.offset + row;
      const bool goes_on = row < previous_batch;
      ForwardRow<E>& at = plan.rows[i];
      at.x = args.x + n * args.x_stride;
      at.x_next = row < next.batch ? args.x + (next.offset + row) * args.x_stride : at.x;
      at.ahead = plan.ahead ? sums_ahead + i * plan.ahead_stride() : nullptr;
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

    this_step.count = rows;
    this_step.back = (s % 2 != 0) != plan.begins_back;
    this_step.packs = s == 0 && plan.packs_in_passing && !plan.ahead;
    this_step.h_is_zeros = s == 0 && args.h0 == nullptr;
    this_step.from_zeros =
        this_step.h_is_zeros && (this_step.packs || plan.packed.zeros_stay(mine.units));
    if (plan.h_in_place) {
      InPlace<Cell, E>{this_step}.run();
    } else if (ahead.makes_products()) {
      ahead.run(this_step);
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
  plan.beyond_caches = hh_bytes + ih_bytes > kBeyondCachesBytes;
  plan.near = kGates > 1 && PackedWeights<Cell, E>::kAbreast == kGates &&
              hh_bytes > kL1Bytes * wanted.units && hh_bytes <= kNearBytes * wanted.units;
  const int64_t fewest = wanted.units > 1 ? kFewestOfThreadsMeanwhile : kFewestMeanwhile;
  const bool from_panels_meanwhile = plan.kStepsMakeProducts && plan.near && shape.B == 1 &&
                                     !neighbours.has_before() && 2 * I > H && I <= 2 * H &&
                                     hh_bytes > fewest * wanted.units &&
                                     hh_bytes + ih_bytes <= kMostMeanwhile * wanted.units;
  plan.x_from_memory = comes_from_memory<E>(kGates * H, I);
  plan.h_from_memory = comes_from_memory<E>(kGates * H, O);
  plan.h_from_l3 = hh_bytes > kFromL3 * wanted.units && !plan.h_from_memory;
  const bool few_steps = few_steps_of_rows<T>(shape.T, shape.B, plan.beyond_caches);
  if (args.packed == nullptr) {
    const auto element = static_cast<int64_t>(sizeof(E));
    const bool h_lines = O * element % kCacheLine == 0;
    const RowsOfWeights hh{hh_bytes, h_lines, from_panels_meanwhile, wide};
    const WeightsInPlace both{hh_bytes + ih_bytes, (I + O) * element / 2,
                              h_lines && I * element % kCacheLine == 0,
                              plan.x_from_memory || plan.h_from_memory};
    plan.x_in_place = (shape.T == 1 && shape.B <= rows_in_place<T>(both)) ||
                      (shape.B == 1 && shape.T <= kStepsInPlace) || few_steps;
    plan.h_in_place =
        plan.x_in_place || (shape.B == 1 && (shape.T <= steps_in_place<Cell>(hh) ||
                                             (shares_memory && hh_bytes > kInPlaceOfThreads)));
    // A team that comes out smaller than asked for may give a thread all rows.
    plan.rows_as_lanes =
        plan.h_in_place && shape.B <= kRowsInPlaceWide && are_lanes<T>(both, thread_rows);
  }
  // Calls in turn: those of more steps gained nothing by it.
  if (shape.T == 1 && args.packed != nullptr) plan.begins_back = take_turn(args.packed);
  if (shape.T == 1 && plan.x_in_place) plan.begins_back = take_turn(args.weights.w_hh);
  // Where w_hh is read in place, products in the step would be dot products, of so few inputs each.
  const bool few = I <= few_inputs(hh_bytes) && !plan.h_in_place;
  // Where one thread, or several with units of their own, have all rows, and steps do not make
  // those products themselves.
  plan.x_as_dots = args.packed == nullptr && wanted.rows == 1 && !neighbours.has_before() &&
                   !(from_panels_meanwhile && !plan.h_in_place) && shape.T > 1 &&
                   shape.T * shape.B <= rows_of_dots<E>(I, shape.B, plan.x_from_memory, few_steps);
  plan.ahead = plan.x_as_dots || (!plan.x_in_place && shape.T > 1 &&
                                  (plan.beyond_caches ? thread_rows <= kRowsAheadOfMemory
                                                      : thread_rows <= kRowsAhead && !few));
  if (plan.ahead) {
    const int64_t step_bytes = thread_rows * plan.ahead_stride() * static_cast<int64_t>(sizeof(T));
    const int64_t at_once = plan.x_from_memory ? kAheadAtOnceOfMemory : kAheadAtOnce;
    plan.steps_ahead = (plan.x_from_memory ? kAheadSumsOfMemory : kAheadSums) / step_bytes;
    if (plan.steps_ahead < kFewestAhead) plan.steps_ahead = kFewestAhead;
    // The last chunk reads w_ih as well: chunks of about even size.
    if (plan.x_from_memory) plan.steps_ahead = even_chunks(shape.T, plan.steps_ahead);
    if (plan.x_as_dots) plan.x_in_place = true;
    plan.x_by_block = args.packed == nullptr && !plan.x_in_place && wanted.rows == 1 &&
                      !neighbours.has_before() && shape.T * step_bytes <= at_once;
    if (plan.x_as_dots || plan.x_by_block) plan.steps_ahead = shape.T;
    if (neighbours.has_before() && plan.steps_ahead > kStepsBehind) plan.steps_ahead = kStepsBehind;
    if (plan.steps_ahead > shape.T) plan.steps_ahead = shape.T;
    plan.meanwhile = from_panels_meanwhile && !plan.h_in_place;
    if (plan.meanwhile) {
      plan.x_by_block = false;
      plan.steps_ahead = kStepsMeanwhile;
    }
  }

  // Not where threads share panels.
  const int64_t first_rows =
      plan.ahead ? plan.steps_ahead * shape.B : Steps(shape, false).now().batch;
  plan.packs_in_passing = plan.kTilesCall && args.packed == nullptr && !plan.x_in_place &&
                          hh_bytes + ih_bytes > kPackedInPassing && first_rows >= kFewestThatCall &&
                          wanted.rows == 1;

  // Dot products want rows in fours.
  const int64_t ahead_rows =
      padded_rows<T>(plan.ahead ? plan.steps_ahead * shape.B * (plan.meanwhile ? 2 : 1) : 0);
  using OneStep = InPlace<Cell, E>;
  const int64_t x_lanes = plan.rows_as_lanes ? OneStep::ByLanes::lanes_size(I) : 0;
  const int64_t h_lanes = plan.rows_as_lanes ? OneStep::ByLanes::lanes_size(O) : 0;
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
