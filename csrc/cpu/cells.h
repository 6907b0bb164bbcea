// The cells: formulas forward and backward, nothing about loops, threads or memory.
//
// A cell sums the products of x and h with the rows of w_ih and w_hh that belong to its gates into
// kSums pre-activations; XMap and HMap say which sum each gate's row goes to. Forward has two
// steps: `activate`, in place, for the gates that depend on nothing but their own sum, and
// `update`. Backward it turns dh (and dc) into deltas, the gradients of the sums, in the same
// order: kSums blocks of H a row, of which those that h contributed to come first and in the order
// of w_hh's rows.

template <typename T>
struct CellState {
  Vec<T> h, c;
};

// What a row brings into the backward pass of a cell.
template <typename T>
struct CellOutcome {
  Vec<T> saved[4];
  Vec<T> c, c_prev;  // cells with a state
  Vec<T> h, h_prev;  // where kReadsOutput, kReadsPrevious
};

template <typename T>
struct CellGradient {
  Vec<T> dh, dc;
};

// Which sums gates add to: gate v of w_ih or w_hh to sum I[v].
template <int... I>
struct Sums {
  static constexpr int kVectors = sizeof...(I);
  static constexpr int kAbreast = vectors_abreast(kVectors);
  static constexpr int at(int v) {
    constexpr int kAt[] = {I...};
    return kAt[v];
  }
};

// Columns of deltas that share the operands they are multiplied with in the weight gradients,
// in units of H.
struct DeltaColumns {
  int begin, end;
  bool x, h;
};

struct Lstm {
  static constexpr CellTraits kTraits = cell_traits(CellKind::lstm);
  static constexpr int kGates = kTraits.gates;
  static constexpr int kSums = kTraits.sums;
  static constexpr int kSaved = kTraits.saved;
  static constexpr bool kActivates = true;
  static constexpr bool kHasState = kTraits.has_state;
  static constexpr bool kReadsOutput = false;
  static constexpr bool kReadsPrevious = false;
  static constexpr bool kCarries = false;
  static constexpr bool kProjects = true;
  using XMap = Sums<0, 1, 2, 3>;
  using HMap = Sums<0, 1, 2, 3>;
  static constexpr DeltaColumns kColumns[] = {{0, 4, true, true}};

  // i, f, o = sigmoid(sum), g = tanh(sum)
  template <typename T>
  static FUSED_RNN_INLINE void activate(Vec<T> (&gates)[4]) {
    gates[0] = sigmoid(gates[0]);
    gates[1] = sigmoid(gates[1]);
    gates[2] = tanh(gates[2]);
    gates[3] = sigmoid(gates[3]);
  }

  // c = f c_prev + i g
  // h = o tanh(c)
  template <typename T>
  static FUSED_RNN_INLINE CellState<T> update(const Vec<T> (&gates)[4], CellState<T> prev,
                                              Vec<T> (&saved)[4]) {
    const auto [i, f, g, o] = gates;
    const Vec<T> c = fma(f, prev.c, i * g);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
    return {o * tanh(c), c};
  }

  // do = dh tanh(c)                        dc += dh o (1 - tanh(c)^2)
  // di = dc g, df = dc c_prev, dg = dc i   dc_prev = dc f
  // and through the activations: s (1 - s) for a sigmoid, 1 - t^2 for a tanh.
  template <typename T>
  static FUSED_RNN_INLINE CellGradient<T> backward(const CellOutcome<T>& was, CellGradient<T> grad,
                                                   Vec<T> (&delta)[4], Vec<T>& h_full) {
    const auto one = Vec<T>::broadcast(1);
    const Vec<T> i = was.saved[0];
    const Vec<T> f = was.saved[1];
    const Vec<T> g = was.saved[2];
    const Vec<T> o = was.saved[3];
    const Vec<T> tanh_c = tanh(was.c);
    const Vec<T> dc = fma(grad.dh * o, one - tanh_c * tanh_c, grad.dc);
    delta[0] = dc * g * i * (one - i);
    delta[1] = dc * was.c_prev * f * (one - f);
    delta[2] = dc * i * (one - g * g);
    delta[3] = grad.dh * tanh_c * o * (one - o);
    h_full = o * tanh_c;
    return {Vec<T>::zero(), dc * f};
  }
};

struct Gru {
  static constexpr CellTraits kTraits = cell_traits(CellKind::gru);
  static constexpr int kGates = kTraits.gates;
  static constexpr int kSums = kTraits.sums;  // r, z, W_hn h + b_hn, W_in x + b_in
  static constexpr int kSaved = kTraits.saved;
  static constexpr bool kActivates = true;
  static constexpr bool kHasState = kTraits.has_state;
  static constexpr bool kReadsOutput = false;
  static constexpr bool kReadsPrevious = true;
  static constexpr bool kCarries = true;
  static constexpr bool kProjects = false;
  using XMap = Sums<0, 1, 3>;
  using HMap = Sums<0, 1, 2>;
  static constexpr DeltaColumns kColumns[] = {
      {0, 2, true, true}, {2, 3, false, true}, {3, 4, true, false}};

  // r, z = sigmoid(sum)
  template <typename T>
  static FUSED_RNN_INLINE void activate(Vec<T> (&gates)[4]) {
    gates[0] = sigmoid(gates[0]);
    gates[1] = sigmoid(gates[1]);
  }

  // n = tanh(W_in x + b_in + r (W_hn h_prev + b_hn))
  // h = (1 - z) n + z h_prev = n + z (h_prev - n)
  template <typename T>
  static FUSED_RNN_INLINE CellState<T> update(const Vec<T> (&gates)[4], CellState<T> prev,
                                              Vec<T> (&saved)[4]) {
    const auto [r, z, from_h, from_x] = gates;
    const Vec<T> n = tanh(fma(r, from_h, from_x));
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = from_h;
    return {fma(z, prev.h - n, n), Vec<T>::zero()};
  }

  // dn = dh (1 - z) (1 - n^2)      dz = dh (h_prev - n) z (1 - z)
  // dh (1 - z) of dn is dh - dh z: not a number where dh is infinite, as in torch.
  // dr = dn (W_hn h + b_hn) r (1 - r)
  // The sum W_hn h + b_hn gets dn r; h_prev gets dh z directly, beside what comes through w_hh.
  template <typename T>
  static FUSED_RNN_INLINE CellGradient<T> backward(const CellOutcome<T>& was, CellGradient<T> grad,
                                                   Vec<T> (&delta)[4], Vec<T>&) {
    const auto one = Vec<T>::broadcast(1);
    const Vec<T> r = was.saved[0];
    const Vec<T> z = was.saved[1];
    const Vec<T> n = was.saved[2];
    const Vec<T> dn = (grad.dh - grad.dh * z) * (one - n * n);
    delta[0] = dn * was.saved[3] * r * (one - r);
    delta[1] = grad.dh * (was.h_prev - n) * z * (one - z);
    delta[2] = dn * r;
    delta[3] = dn;
    return {grad.dh * z, Vec<T>::zero()};
  }
};

// h = act(W_ih x + b_ih + W_hh h_prev + b_hh), act = tanh or relu; the derivative is a function
// of h, so nothing is saved.
template <CellKind kind>
struct Rnn {
  static constexpr CellTraits kTraits = cell_traits(kind);
  static constexpr int kGates = kTraits.gates;
  static constexpr int kSums = kTraits.sums;
  static constexpr int kSaved = kTraits.saved;
  static constexpr bool kActivates = false;
  static constexpr bool kHasState = kTraits.has_state;
  static constexpr bool kReadsOutput = true;
  static constexpr bool kReadsPrevious = false;
  static constexpr bool kCarries = false;
  static constexpr bool kProjects = false;
  using XMap = Sums<0>;
  using HMap = Sums<0>;
  static constexpr DeltaColumns kColumns[] = {{0, 1, true, true}};

  template <typename T>
  static FUSED_RNN_INLINE void activate(Vec<T> (&)[1]) {}

  template <typename T>
  static FUSED_RNN_INLINE CellState<T> update(const Vec<T> (&sum)[1], CellState<T>, Vec<T> (&)[4]) {
    if constexpr (kind == CellKind::rnn_tanh) {
      return {tanh(sum[0]), Vec<T>::zero()};
    } else {
      return {select_if_not_positive(sum[0], Vec<T>::zero(), sum[0]), Vec<T>::zero()};
    }
  }

  // tanh: delta = dh (1 - h^2)      relu: delta = dh where h > 0
  template <typename T>
  static FUSED_RNN_INLINE CellGradient<T> backward(const CellOutcome<T>& was, CellGradient<T> grad,
                                                   Vec<T> (&delta)[1], Vec<T>&) {
    if constexpr (kind == CellKind::rnn_tanh) {
      delta[0] = grad.dh * (Vec<T>::broadcast(1) - was.h * was.h);
    } else {
      delta[0] = select_if_not_positive(was.h, Vec<T>::zero(), grad.dh);
    }
    return {Vec<T>::zero(), Vec<T>::zero()};
  }
};
