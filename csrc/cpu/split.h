// How a team divides a layer: by rows, which are independent, or by blocks of units.

// Steps that a layer is behind the one before it where both run at the same time: of one row, a
// tile of input products (12 steps: no faster).
constexpr int64_t kStepsBehind = kTileRows;

struct Split {
  int rows;
  int units;

  // The same division for a team that came out smaller than asked for.
  Split among(int team) const {
    if (team == rows * units) return *this;
    return units > 1 ? Split{1, team} : Split{team, 1};
  }
};

// What one thread does of every step: its rows, and of those its blocks of units and of columns of
// a projected h.
struct Share {
  Range rows, units, hidden;
  bool alone;  // no other thread works on the same rows: the steps need no barrier
  int id, team;
};

// Part `id` of `parts` of the rows, cut where a falling batch gives all parts the same number of
// rows over all steps.
inline Range share_rows(const SequenceShape& shape, int parts, int id) {
  if (shape.batch_sizes == nullptr || parts == 1) return share(shape.B, parts, id);
  const int64_t total = Steps(shape, false).rows();
  // Row b lives while batch_sizes[t] > b: its length falls as b rises.
  Range range{0, shape.B};
  int64_t done = 0;
  int64_t length = shape.T;
  int part = 0;
  for (int64_t b = 0; b < shape.B; ++b) {
    while (length > 0 && shape.batch_sizes[length - 1] <= b) --length;
    done += length;
    while (part + 1 < parts && done * parts >= total * (part + 1)) {
      if (part == id) range.end = b + 1;
      ++part;
      if (part == id) range.begin = b + 1;
    }
  }
  return range;
}

template <typename T>
Share share_of(const SequenceShape& shape, Split split, int id, int team) {
  const int part = id % split.units;
  return {share_rows(shape, split.rows, id / split.units),
          share(blocks_of<T>(shape.H), split.units, part),
          share(blocks_of<T>(shape.hidden()), split.units, part),
          split.units == 1,
          id,
          team};
}

// The multiply-adds of a layer in one direction.
struct Work {
  double weights;  // of a row: how many weights there are
  double step;
  double call;

  template <typename Cell>
  static Work of(const SequenceShape& shape) {
    const double weights = static_cast<double>(Cell::kGates) * static_cast<double>(shape.H) *
                           static_cast<double>(shape.I + shape.hidden());
    const double step = weights * static_cast<double>(shape.B);
    return {weights, step, step * static_cast<double>(shape.T)};
  }

  // How many threads it is worth, some 4 us each.
  double threads() const { return call / 4e5; }
};

// What a step of few rows costs on average, in multiply-adds that take as long (csrc/DECISIONS.md,
// "Threads").
class StepCost {
 public:
  StepCost(const SequenceShape& shape, double weights)
      : weights_(weights), steps_(shape.T), rows_(Steps(shape, false).rows()) {}

  // Tiles of few rows take as long as if there were one more, and of one it is the reading of the
  // weights that takes long. Once, each thread fetches the panels that the others have packed.
  double by_rows(int threads) const {
    const int64_t rows = (rows_ + steps_ * threads - 1) / (steps_ * threads);
    const double fetching = 12 / static_cast<double>(steps_);
    return weights_ * ((rows > 1 ? static_cast<double>(rows + 1) : 2.5) + fetching);
  }

  // A barrier has as many rounds as it takes to double one thread to all (team.h).
  double by_units(int threads) const {
    constexpr double kRound = 6e4;
    const double rows = static_cast<double>(rows_) / static_cast<double>(steps_);
    double rounds = 0;
    for (int reached = 1; reached < threads; reached *= 2) ++rounds;
    return weights_ * (rows + 1) / threads + kRound * rounds;
  }

 private:
  double weights_;
  int64_t steps_;
  int64_t rows_;  // of all steps
};

// How to divide up to `limit` threads, no more than the work is worth. Rows need no barrier, so
// they are divided where every thread gets full tiles of them, unless the weights are so large that
// every thread would stream all of them at every step. Dividing the units costs a barrier a step,
// and gives each thread its own part of the weights (H = 1024, B = 32, two threads: 42 ms against
// 54 by rows; H = 512, B = 32: 8.5 against 8.9).
//
// A single step has no such barrier, and divided by rows every thread would fetch the panels that
// the others have just packed from their caches (LSTMCell H = 128, two threads: B = 32 26 us
// against 31 by rows, B = 16 18 against 25).
//
// Fewer rows than full tiles are divided where StepCost says so.
template <typename Cell, typename E>
Split split_work(const SequenceShape& shape, int limit) {
  constexpr double kWorthABarrier = 4e4;      // multiply-adds of a step for each thread
  constexpr double kSharedWeights = 3 << 20;  // bytes
  const Work work = Work::of<Cell>(shape);
  const auto at_most = [](int threads, double most) {
    return most < threads ? (most < 1 ? 1 : static_cast<int>(most)) : threads;
  };
  const int count = at_most(limit, work.threads());
  if (count == 1) return {1, 1};
  const int by_rows = at_most(count, static_cast<double>(shape.B));
  const int by_units = at_most(at_most(count, static_cast<double>(blocks_of<sum_t<E>>(shape.H))),
                               work.step / kWorthABarrier);
  if (by_units == 1) return {by_rows, 1};
  const bool single_step = shape.T == 1;
  if (work.weights * sizeof(E) > kSharedWeights || (single_step && by_units == count))
    return {1, by_units};
  if (shape.B >= kTileRows * static_cast<int64_t>(count)) return {by_rows, 1};
  if (single_step) return {1, by_units};
  const StepCost cost(shape, work.weights);
  return cost.by_rows(by_rows) <= cost.by_units(by_units) ? Split{by_rows, 1} : Split{1, by_units};
}
