// sigmoid and tanh of a vector.
//
// Both rest on one expansion: y = n ln 2 + r with |r| <= ln(2)/2, and expm1(r) = r + r^2 P(r).
// P is a minimax polynomial fitted for this file by the Remez exchange; its error in expm1 is at
// most 5e-10 for float and 5e-19 for double, well under half an ulp. Bounds measured against
// long double on samples of the whole range (tests/cpp/kernels_test.cpp holds them):
//   sigmoid and tanh, float and double: 3 ulp (2.4 and 2.5 found in every eleventh float)
// Infinities give the limits, a NaN gives a NaN, tanh(x) keeps the relative accuracy of small x.

template <typename T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int kMantissaBits = 23;
  static constexpr int kBias = 127;
  static constexpr float kLog2e = 1.44269504F;
  static constexpr float kLn2High = 0.693359375F;
  static constexpr float kLn2Low = -2.12194440e-4F;
  static constexpr float kSigmoidLeast = -104.0F;  // sigmoid(-104) rounds to zero,
  static constexpr float kSigmoidMost = 20.0F;     // and sigmoid(20) to 1
  static constexpr int kSigmoidOffset = 32;
  static constexpr float kTanhLimit = 20.0F;  // tanh(10) rounds to 1
  static constexpr float kP[] = {0.5000000014F,   0.1666666676F,   0.04166646337F,
                                 0.008333285716F, 0.001393382228F, 0.0001990779075F};
};

template <>
struct ExpConstants<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissaBits = 52;
  static constexpr int kBias = 1023;
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr double kLn2High = 0.693147180369123816490;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kSigmoidLeast = -746.0;
  static constexpr double kSigmoidMost = 40.0;
  static constexpr int kSigmoidOffset = 63;
  static constexpr double kTanhLimit = 40.0;
  static constexpr double kP[] = {0.5,
                                  0.166666666666666711,
                                  0.0416666666666666841,
                                  0.00833333333332602487,
                                  0.00138888888888742105,
                                  0.00019841269875205621,
                                  0.0000248015873477920889,
                                  2.75572549126383639e-6,
                                  2.7557252468040512e-7,
                                  2.51054195797073373e-8,
                                  2.09217419687959498e-9};
};

// The sum of c[i] r^i by halves: Horner's rule takes no powers of r, but a chain of count
// operations, and this one of log2(count).
template <typename T, int kCount, int kPowers>
FUSED_RNN_INLINE Vec<T> polynomial(const T* c, const Vec<T> (&powers)[kPowers]) {
  if constexpr (kCount == 1) {
    return Vec<T>::broadcast(c[0]);
  } else {
    constexpr int kLevel = kCount > 8 ? 3 : kCount > 4 ? 2 : kCount > 2 ? 1 : 0;
    constexpr int kLow = 1 << kLevel;
    return fma(polynomial<T, kCount - kLow>(c + kLow, powers), powers[kLevel],
               polynomial<T, kLow>(c, powers));
  }
}

template <typename T>
struct ExpParts {
  Vec<T> expm1_r;  // expm1(r)
  Vec<T> power;    // 2^(n + kOffset)
};

// y = n ln 2 + r, n an integer; n + kOffset is the exponent of a normal number.
template <int kOffset, typename T>
FUSED_RNN_INLINE ExpParts<T> exp_parts(Vec<T> y) {
  using C = ExpConstants<T>;
  using V = Vec<T>;
  constexpr int kTerms = sizeof(C::kP) / sizeof(T);
  // Adding kRound rounds to an integer and leaves it in the low bits of the sum, here with the
  // exponent's bias: shifted up by the mantissa, those bits are the power of two.
  const auto round = V::broadcast(C::kRound + T(C::kBias + kOffset));
  const V rounded = fma(y, V::broadcast(C::kLog2e), round);
  typename V::Integer bits;
  __builtin_memcpy(&bits, &rounded.v, sizeof bits);
  bits <<= C::kMantissaBits;
  V power;
  __builtin_memcpy(&power.v, &bits, sizeof bits);

  const V n = rounded - round;
  V r = fma(n, V::broadcast(-C::kLn2High), y);
  r = fma(n, V::broadcast(-C::kLn2Low), r);
  const V r2 = r * r;
  const V r4 = r2 * r2;
  const V powers[] = {r, r2, r4, r4 * r4};
  return {fma(r2, polynomial<T, kTerms>(C::kP, powers), r), power};
}

// sigmoid(x) = s e / (s e + s), e = exp(x), s = 2^kSigmoidOffset: s e is a normal number where
// e is a denormal one or rounds to zero, so that the quotient is accurate down to the denormals.
template <typename T>
FUSED_RNN_INLINE Vec<T> sigmoid(Vec<T> x) {
  using C = ExpConstants<T>;
  constexpr T kScale = T(uint64_t{1} << C::kSigmoidOffset);
  const auto [expm1_r, power] =
      exp_parts<C::kSigmoidOffset>(clamp(x, C::kSigmoidLeast, C::kSigmoidMost));
  const Vec<T> e = fma(power, expm1_r, power);
  return e / (e + Vec<T>::broadcast(kScale));
}

// tanh(x) = expm1(2x) / (expm1(2x) + 2), expm1(2x) = 2^n expm1(r) + (2^n - 1)
template <typename T>
FUSED_RNN_INLINE Vec<T> tanh(Vec<T> x) {
  using C = ExpConstants<T>;
  const auto [expm1_r, power] = exp_parts<0>(clamp(x + x, -C::kTanhLimit, C::kTanhLimit));
  const Vec<T> e = fma(power, expm1_r, power - Vec<T>::broadcast(1));
  return e / (e + Vec<T>::broadcast(2));
}
