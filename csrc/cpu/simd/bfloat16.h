// bfloat16 as an operand: pairs along k, multiplied and added to a float by one instruction
// (AVX512_BF16). It rounds to nearest even, and takes and gives denormals as zeros.

struct Bfloat16Pairs {
  __m512bh v;
};

FUSED_RNN_INLINE Vec<float> multiply_add(Bfloat16Pairs a, Bfloat16Pairs b, Vec<float> sum) {
  return {_mm512_dpbf16_ps(sum.v, a.v, b.v)};
}

template <>
struct Operand<bfloat16> {
  using T = float;
  using V = Bfloat16Pairs;
  static constexpr int kGroup = 2;
  static constexpr int kElements = Vec<T>::kLanes * kGroup;

  static FUSED_RNN_INLINE V load(const bfloat16* p, int n = kElements) {
    V r;
    if (n == kElements) {
      __builtin_memcpy(&r.v, p, sizeof(r.v));
    } else {
      r.v = as_pairs(_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p));
    }
    return r;
  }
  static FUSED_RNN_INLINE V broadcast(const bfloat16* group) {
    int pair;
    __builtin_memcpy(&pair, group, sizeof(pair));
    return {as_pairs(_mm512_set1_epi32(pair))};
  }
  static FUSED_RNN_INLINE V broadcast(const bfloat16* group, int) {
    return {as_pairs(_mm512_set1_epi32(group->bits))};
  }
  static FUSED_RNN_INLINE void pack(const bfloat16* const* rows, int n, bfloat16* to) {
    const __m512i low = load_words(rows[0], n);
    const __m512i high =
        rows[1] != nullptr ? shifted_up(load_words(rows[1], n)) : _mm512_setzero_si512();
    const __m512i pairs = _mm512_or_si512(low, high);
    __builtin_memcpy(to, &pairs, sizeof(pairs));
  }

  static FUSED_RNN_INLINE Vec<T> widened(const bfloat16* p, int n) {
    Vec<T> r;
    const __m512i bits = shifted_up(load_words(p, n));
    __builtin_memcpy(&r.v, &bits, sizeof(bits));
    return r;
  }
  static FUSED_RNN_INLINE void narrow(Vec<T> v, bfloat16* p, int n) {
    const __m256bh rounded = _mm512_cvtneps_pbh(v.v);
    __m256i words;
    __builtin_memcpy(&words, &rounded, sizeof(words));
    if (n == Vec<T>::kLanes) {
      __builtin_memcpy(p, &words, sizeof(words));
    } else {
      _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1U << n) - 1), words);
    }
  }

 private:
  static FUSED_RNN_INLINE __m512bh as_pairs(__m512i bits) {
    __m512bh pairs;
    __builtin_memcpy(&pairs, &bits, sizeof(pairs));
    return pairs;
  }
  // Of the zero-masking kind: the plain ones make GCC 12 warn of their own uninitialised operand.
  static FUSED_RNN_INLINE __m512i shifted_up(__m512i words) {
    return _mm512_maskz_slli_epi32(0xFFFF, words, 16);
  }
  // The first n <= kLanes of 16 bits, each in the lower half of its lane.
  static FUSED_RNN_INLINE __m512i load_words(const bfloat16* p, int n) {
    return _mm512_maskz_cvtepu16_epi32(
        0xFFFF, _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1U << n) - 1), p));
  }
};
