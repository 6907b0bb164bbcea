// The layers of a stack and their directions: one after another, each on all threads, or at the
// same time, each on one.

// run(i) for i in 0 .. count - 1, each thread its own i in rising order.
template <typename Run>
void run_at_once(const Threads& threads, int count, const Run& run) {
  std::atomic<bool> failed{false};
  std::exception_ptr failure;  // the first; it may not leave the thread
  auto body = [&](int id, int team) {
    for (int i = id; i < count; i += team) {
      try {
        run(i);
      } catch (...) {
        if (!failed.exchange(true)) failure = std::current_exception();
      }
    }
  };
  run_team(threads, count, body);
  if (failure) std::rethrow_exception(failure);
}

// Two directions have nothing to wait for in each other: side by side they need neither a barrier
// nor a division of the rows into smaller tiles. That is better unless one direction alone can use
// more than two threads.
template <typename Cell, typename E>
bool side_by_side(const SequenceShape& shape, int directions, const Threads& threads) {
  if (directions < 2 || threads.limit < 2 || Work::of<Cell>(shape).threads() < 1) return false;
  const Split alone = split_work<Cell, E>(shape, threads.limit);
  return alone.rows * alone.units <= 2;
}

template <typename Cell, typename E>
void forward_directions(const ForwardArgs<E>* args, int directions, const Threads& threads) {
  if (side_by_side<Cell, E>(args->shape, directions, threads)) {
    return run_at_once(threads, directions,
                       [&](int direction) { forward_layer<Cell>(args[direction], threads.one()); });
  }
  for (int direction = 0; direction < directions; ++direction)
    forward_layer<Cell>(args[direction], threads);
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
  run_at_once(threads, directions, [&](int direction) {
    backward_layer<Cell>(direction == 0 ? args[0] : second, threads.one());
  });
  for (int64_t i = 0; i < size; ++i) args[1].grad_x[i] += grad_x[static_cast<size_t>(i)];
}

// What is written between layers that run at the same time goes to two buffers in turn. Forward,
// layer l writes where layer l - 2 did, which reads the row of step t once more, as its h_prev of
// step t + 1. So layer l begins step t when layer l - 1 has finished step t + 1: then layer l - 2
// has as well. Backward, a row of grad_x is read in its own step alone, by the layer below: when
// that has gone on, the one below it may write there.

// A stack of layers in one direction: the lowest of them, and the shape that all others share.
struct Stack {
  const SequenceShape& first;
  const SequenceShape& other;
  int layers;
};

// Whether its layers run at the same time, each some steps behind the one before it. Compared are
// the multiply-adds that all wait for: those of the thread with the most layers, and those of all
// layers, each divided between the threads as it would be. Where rows are divided so that a thread
// has less than two full tiles of them, its multiply-adds count a quarter more (Zen 3, two threads
// and layers, T = 60, H = 32: LSTM, B = 4 247 us in turn and 154 at the same time, B = 16 527 and
// 415). No thread should have whole layers of weights that leave no room in L2, though, where it
// could have half of their rows (LSTM, H = 128, B = 16, backward: 8.0 ms and 9.1). And all of it
// must be worth two threads: two layers of T = 60, H = 32, B = 1 take 29 us for 41 in a loop of
// nothing else, but other threads that have gone to sleep meanwhile wake up in 10 to 20.
template <typename Cell, typename E>
bool as_wavefront(const Stack& stack, int directions, const Threads& threads) {
  constexpr double kPartTiles = 1.25;
  constexpr double kWholeWeights = 512 << 10;  // bytes
  const int at_once = stack.layers < threads.limit ? stack.layers : threads.limit;
  if (at_once < 2 || directions > 1) return false;
  const Work first = Work::of<Cell>(stack.first);
  const Work other = Work::of<Cell>(stack.other);
  const double others = stack.layers - 1;
  if (first.threads() + others * other.threads() < 2) return false;

  const auto divided = [&](const SequenceShape& shape, const Work& work) {
    const Split split = split_work<Cell, E>(shape, threads.limit);
    const bool part_tiles = split.rows > 1 && shape.B < 2 * kTileRows * split.rows;
    return work.call / (split.rows * split.units) * (part_tiles ? kPartTiles : 1);
  };
  const double in_turn = divided(stack.first, first) + others * divided(stack.other, other);
  if (in_turn < first.call + others * other.call && other.weights * sizeof(E) >= kWholeWeights)
    return false;
  const double rounds = (stack.layers + at_once - 1) / at_once;
  const double last_begins = static_cast<double>((at_once - 1) * (kStepsBehind + 1)) *
                             (other.call / static_cast<double>(stack.other.T));
  const double longest = first.call > other.call ? first.call : other.call;
  return last_begins + longest + (rounds - 1) * other.call < in_turn;
}

// run(layer, neighbours) for all layers at the same time.
template <typename Run>
void run_as_wavefront(const Threads& threads, int layers, int64_t T, const Run& run) {
  const std::unique_ptr<Progress[]> progress(new Progress[static_cast<size_t>(layers)]);
  // A layer that fails lets those behind it go.
  struct AtLast {
    Progress& progress;
    int64_t T;
    ~AtLast() { progress.reach(T); }
  };
  run_at_once(threads, layers, [&](int layer) {
    const AtLast at_last{progress[static_cast<size_t>(layer)], T};
    run(layer, Neighbours(layer > 0 ? &progress[static_cast<size_t>(layer - 1)] : nullptr,
                          layer + 1 < layers ? &at_last.progress : nullptr));
  });
}

template <typename Cell, typename E>
void forward_layers(const ForwardArgs<E>* args, int layers, int directions,
                    const Threads& threads) {
  const SequenceShape& last = args[(layers - 1) * directions].shape;
  if (as_wavefront<Cell, E>({args->shape, last, layers}, directions, threads)) {
    return run_as_wavefront(threads, layers, last.T, [&](int layer, const Neighbours& neighbours) {
      forward_layer<Cell>(args[layer], threads.one(), neighbours);
    });
  }
  for (int layer = 0; layer < layers; ++layer)
    forward_directions<Cell>(args + layer * directions, directions, threads);
}

template <typename Cell, typename E>
void backward_layers(const BackwardArgs<E>* args, int layers, int directions,
                     const Threads& threads) {
  const SequenceShape& first = args[(layers - 1) * directions].shape;
  if (as_wavefront<Cell, E>({first, args->shape, layers}, directions, threads)) {
    return run_as_wavefront(threads, layers, first.T, [&](int layer, const Neighbours& neighbours) {
      backward_layer<Cell>(args[layer], threads.one(), neighbours);
    });
  }
  for (int layer = 0; layer < layers; ++layer)
    backward_directions<Cell>(args + layer * directions, directions, threads);
}
