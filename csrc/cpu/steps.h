// Walks the steps of a dense or packed sequence in either direction, and divides them into chunks.

struct Step {
  int64_t t;
  int64_t offset;  // of the step's first row
  int64_t batch;   // rows of the step
};

class Steps {
 public:
  // Forward order of the layer, or backward, the order in which gradients flow.
  Steps(const SequenceShape& shape, bool backward)
      : shape_(&shape), rising_(shape.reverse == backward) {
    now_.t = rising_ ? 0 : shape.T - 1;
    now_.batch = batch(now_.t);
    now_.offset = rising_ ? 0 : rows() - now_.batch;
  }

  const Step& now() const { return now_; }

  // The step after this one, without rows beyond either end.
  Step following() const {
    const int64_t t = rising_ ? now_.t + 1 : now_.t - 1;
    const int64_t rows = batch(t);
    return {t, rising_ ? now_.offset + now_.batch : now_.offset - rows, rows};
  }

  void next() { now_ = following(); }

  // N, the rows of all steps.
  int64_t rows() const {
    if (shape_->batch_sizes == nullptr) return shape_->T * shape_->B;
    int64_t n = 0;
    for (int64_t t = 0; t < shape_->T; ++t) n += shape_->batch_sizes[t];
    return n;
  }

 private:
  // Rows of step t; 0 beyond either end.
  int64_t batch(int64_t t) const {
    if (t < 0 || t >= shape_->T) return 0;
    return shape_->batch_sizes == nullptr ? shape_->B : shape_->batch_sizes[t];
  }

  const SequenceShape* shape_;
  bool rising_;
  Step now_;
};

// How many of `count` steps or rows a chunk of at most `most` has where all chunks are about even.
constexpr int64_t even_chunks(int64_t count, int64_t most) {
  const int64_t chunks = (count + most - 1) / most;
  return (count + chunks - 1) / chunks;
}
