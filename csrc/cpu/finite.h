// Whether zero times some values is zero: not of infinities and NaN. Where all are finite, products
// with zeros can be left out.

template <typename T>
bool are_finite(const T* values, int64_t count) {
  using V = Vec<T>;
  V sum = V::zero();
  for (int64_t i = 0; i < count; i += V::kLanes) {
    const int64_t left = count - i;
    const int lanes = left < V::kLanes ? static_cast<int>(left) : V::kLanes;
    sum = fma(V::zero(), V::load(values + i, lanes), sum);
  }
  alignas(64) T lanes[V::kLanes];
  sum.store(lanes);
  T all{};
  for (const T lane : lanes) all += lane;
  return all == 0;
}

// The same of operands as they pass by while they are packed: sum() is zeros if all of them are
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
