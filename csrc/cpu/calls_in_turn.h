// Calls in turn. The steps of a call go through the blocks of units forth and back, so that what
// the caches still hold of the weights is used first. Calls of one step that pack no weights of
// gates do so as well, since a loop may be made of them. The results are the same to the last bit.
// What it gave is in csrc/DECISIONS.md, "Weights read in place".

// Whether this call with these weights is to begin at the last block: no in a thread's first call
// with them, and then yes and no in turn. One bit is kept for each of some places where weights
// may lie; weights that share one only lose time by it.
inline bool take_turn(const void* weights) {
  constexpr int kBits = 8;
  static thread_local bool back[1 << kBits];
  // The golden ratio's bits spread addresses, which are multiples of powers of two.
  const uint64_t spread = reinterpret_cast<uintptr_t>(weights) * uint64_t{0x9E3779B97F4A7C15};
  bool& mine = back[spread >> (64 - kBits)];
  mine = !mine;
  return !mine;
}
