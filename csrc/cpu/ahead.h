// When the input products that are ahead of a thread's steps are made: those of some steps at a
// time, before the first of them, or while the steps before them run.
template <typename Cell, typename E>
class InputsAhead {
  using T = sum_t<E>;
  using Plan = ForwardPlan<Cell, E>;

 public:
  InputsAhead(const Plan& plan, const Share& mine, const Steps& first)
      : plan_(plan), mine_(mine), later_(first), meanwhile_(plan, mine.units) {}

  // How many steps have theirs.
  int64_t until() const { return until_; }

  // Those of the next steps, whose x await(steps) waits for.
  template <typename Await>
  __attribute__((noinline)) void next(const Await& await) {
    if (plan_.meanwhile && until_ > 0) {
      meanwhile_.finish();
      until_ = listed_;
      row_ = other_;
    } else {
      const bool first = until_ == 0;
      const int64_t count = list(0);
      until_ = listed_;
      row_ = 0;
      await(until_);
      if (plan_.x_as_dots) {
        input_products_in_place(plan_, count, mine_.units);
      } else {
        InputProducts<Cell, E> products(plan_);
        if (first && (plan_.x_by_block || plan_.packs_in_passing)) {
          products.pack_and_run(count, mine_.units);
        } else {
          products.run(count, mine_.units);
        }
      }
    }
    if (plan_.meanwhile) {
      other_ = row_ == 0 ? kStepsMeanwhile : 0;
      meanwhile_.begin(other_, list(other_));
    }
  }

  // The sums of the next rows.
  const T* take(int64_t rows) {
    const T* const sums = plan_.ahead_sums + row_ * plan_.ahead_stride();
    row_ += rows;
    return sums;
  }

  // A step that makes some for later ones.
  bool makes_products() const { return Plan::kStepsMakeProducts && meanwhile_.some_left(); }
  void run(ForwardStep<Cell, E>& step) {
    if constexpr (Plan::kStepsMakeProducts) meanwhile_.run(step);
  }

 private:
  // Lists the rows of x of as many steps as have their products made at once, from row `first` of
  // plan.ahead_x on. Returns how many rows.
  int64_t list(int64_t first) {
    const ForwardArgs<E>& args = plan_.args;
    const Range rows = mine_.rows;
    const int64_t left = args.shape.T - listed_;
    const int64_t some = left < plan_.steps_ahead ? left : plan_.steps_ahead;
    const E** const x = plan_.ahead_x + first;
    int64_t count = 0;
    Steps later = later_;
    for (int64_t i = 0; i < some; ++i) {
      if (listed_ + i > 0) later.next();
      const Step then = later.now();
      for (int64_t row = rows.begin; row < rows.end && row < then.batch; ++row)
        x[count++] = args.x + (then.offset + row) * args.x_stride;
    }
    later_ = later;
    listed_ += some;
    return count;
  }

  const Plan& plan_;
  const Share& mine_;
  Steps later_;         // the last that is listed, or the first of all
  int64_t listed_ = 0;  // steps
  int64_t until_ = 0;
  int64_t row_ = 0;    // of the next step, among the plan's
  int64_t other_ = 0;  // the first of those made meanwhile
  ProductsMeanwhile<Cell, E> meanwhile_;
};
