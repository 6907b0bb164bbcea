// Whether zero times some values is zero: not of infinities and NaN. Where all are finite, products
// with zeros can be left out.

// Of operands as they pass by, while they are packed, say: sum() is zeros if all of them are
// finite, and some of it is NaN if not.
template <typename E>
class TimesZero {
  using Op = Operand<E>;
  using V = Vec<sum_t<E>>;

 public:
  FUSED_RNN_INLINE TimesZero() {
    constexpr E kZero{};
    zero_ = Op::broadcast(&kZero, 1);
#pragma GCC unroll 4
    for (int i = 0; i < kSums; ++i) sum_[i] = V::zero();
  }
  FUSED_RNN_INLINE void operator()(int i, const typename Op::V& operands) {
    sum_[i % kSums] = multiply_add(zero_, operands, sum_[i % kSums]);
  }
  // Lane by lane.
  FUSED_RNN_INLINE V sum() const { return sum_[0] + sum_[1] + (sum_[2] + sum_[3]); }

 private:
  static constexpr int kSums = 4;  // independent of each other
  typename Op::V zero_;
  V sum_[kSums];
};

// The same of values that lie in a row.
template <typename E>
bool are_finite(const E* values, int64_t count) {
  using Op = Operand<E>;
  using T = sum_t<E>;
  TimesZero<E> times_zero;
  int64_t i = 0;
  for (; i + 4 * Op::kElements <= count; i += 4 * Op::kElements) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      times_zero(j, Op::load(values + i + j * Op::kElements, Op::kElements));
  }
  for (; i < count; i += Op::kElements) {
    const int64_t left = count - i;
    times_zero(0,
               Op::load(values + i, left < Op::kElements ? static_cast<int>(left) : Op::kElements));
  }
  alignas(64) T lanes[Vec<T>::kLanes];
  times_zero.sum().store(lanes);
  T all{};
  for (const T lane : lanes) all += lane;
  return all == 0;
}
