// Memory that is wanted soon, called for (prefetched) a few cache lines at a time, between pieces
// of a product (multiply_in_pieces in tile.h).

class CallsAhead {
 public:
  // At most so many parts of memory: the gates of both weights, and two panels.
  static constexpr int kMost = 10;

  void clear() { *this = {}; }

  // Divides all calls between so many tiles, which call some() so often each.
  void divide(int64_t tiles, int64_t pieces) {
    int64_t lines = 0;
    for (int i = 0; i < spans_; ++i) lines += span_[i].lines;
    const int64_t times = tiles * pieces;
    share_ = times > 0 ? (lines + times - 1) / times : 0;
    into_l1_ = lines * kCacheLine <= tiles * kIntoL1;
  }

  template <typename E>
  void add(const E* data, int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(E));
    span_[spans_++] = {reinterpret_cast<const char*>(data), (bytes + kCacheLine - 1) / kCacheLine};
  }

  FUSED_RNN_INLINE void some() { into_l1_ ? some_into<3>() : some_into<2>(); }

 private:
  struct Span {
    const char* data;
    int64_t lines;
  };
  // A tile calls for so much into L1, and for more into L2 (T = 25, frozen, into L1 and L2: LSTM H
  // = 1024, B = 8 17.2 ms and 16.5, B = 16 28.9 both, B = 24 41.7 and 42.7, B = 32 55.2 and 55.6
  // (57.8 in another minute), GRU, B = 8 12.9 and 11.9).
  static constexpr int64_t kIntoL1 = 64 << 10;

  template <int kLocality>
  FUSED_RNN_INLINE void some_into() {
    for (int64_t left = share_; left > 0 && next_ < spans_;) {
      Span& span = span_[next_];
      const int64_t lines = span.lines < left ? span.lines : left;
      for (int64_t i = 0; i < lines; ++i)
        __builtin_prefetch(span.data + i * kCacheLine, 0, kLocality);
      span.data += lines * kCacheLine;
      span.lines -= lines;
      left -= lines;
      if (span.lines == 0) ++next_;
    }
  }

  Span span_[kMost] = {};
  int spans_ = 0;
  int next_ = 0;
  int64_t share_ = 0;  // lines of a call of some()
  bool into_l1_ = false;
};
