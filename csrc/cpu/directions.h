// The directions of a layer: one after the other, each on all threads, or side by side, each on
// one.

// Two directions have nothing to wait for in each other: side by side they need neither a barrier
// nor a division of the rows into smaller tiles. That is better unless one direction alone can use
// more than two threads.
template <typename Cell, typename E>
bool side_by_side(const SequenceShape& shape, int directions, const Threads& threads) {
  if (directions < 2 || threads.limit < 2 || Work::of<Cell>(shape).threads() < 1) return false;
  const Split alone = split_work<Cell, E>(shape, threads.limit);
  return alone.rows * alone.units <= 2;
}

// run(direction, threads) for both directions at the same time.
template <typename Run>
void run_side_by_side(const Threads& threads, const Run& run) {
  std::exception_ptr failures[2];
  auto body = [&](int id, int team) {
    for (int direction = id; direction < 2; direction += team) {
      try {
        run(direction, Threads{1, threads.run});
      } catch (...) {
        failures[direction] = std::current_exception();  // It may not leave the thread.
      }
    }
  };
  run_team(threads, 2, body);
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

template <typename Cell, typename E>
void forward_directions(const ForwardArgs<E>* args, int directions, const Threads& threads) {
  const auto run = [&](int direction, const Threads& its) {
    forward_layer<Cell>(args[direction], its);
  };
  if (side_by_side<Cell, E>(args->shape, directions, threads))
    return run_side_by_side(threads, run);
  for (int direction = 0; direction < directions; ++direction) run(direction, threads);
}

template <typename Cell, typename E>
void backward_directions(const BackwardArgs<E>* args, int directions, const Threads& threads) {
  using T = sum_t<E>;
  if (!side_by_side<Cell, E>(args->shape, directions, threads)) {
    for (int direction = 0; direction < directions; ++direction)
      backward_layer<Cell>(args[direction], threads);
    return;
  }
  // The second direction adds to the gradient of x that the first one writes: it gets its own.
  BackwardArgs<E> second = args[1];
  const int64_t size = second.add_to_grad_x ? Steps(second.shape, true).rows() * second.shape.I : 0;
  const std::unique_ptr<T[]> grad_x(new T[static_cast<size_t>(size)]);
  if (second.add_to_grad_x) {
    second.add_to_grad_x = false;
    second.grad_x = grad_x.get();
  }
  run_side_by_side(threads, [&](int direction, const Threads& its) {
    backward_layer<Cell>(direction == 0 ? args[0] : second, its);
  });
  for (int64_t i = 0; i < size; ++i) args[1].grad_x[i] += grad_x[static_cast<size_t>(i)];
}
