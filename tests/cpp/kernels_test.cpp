// The kernels without Python or torch, meant to run under sanitizers: every instruction set of the
// machine, odd sizes, dense and packed, both directions, one to three threads. Every buffer is a
// heap block of its exact size, so that an address sanitizer sees a step beyond either end.
//
// Forward results are compared with a naive loop in double, gradients with central differences of
// the kernels' own forward pass in double, those of bfloat16 with the gradients in double,
// activations with long double in units in the last place.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/workspace.h"

namespace {

using namespace fused_rnn;

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("FAILED %s\n", what.c_str());
}

// Threads as the kernels ask for them, one fewer than asked for when `fewer`.
template <bool fewer>
void run_threads(int count, void (*body)(void*, int, int), void* context) {
  const int team = fewer ? count - 1 : count;
  std::vector<std::thread> threads;
  for (int id = 1; id < team; ++id) threads.emplace_back(body, context, id, team);
  body(context, 0, team);
  for (std::thread& thread : threads) thread.join();
}

template <typename T>
using Array = std::vector<T>;

template <typename T>
T from_double(double value) {
  return static_cast<T>(value);
}

// Rounded to nearest even.
template <>
bfloat16 from_double<bfloat16>(double value) {
  const float rounded = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  bits += 0x7FFF + (bits >> 16 & 1);
  return {static_cast<uint16_t>(bits >> 16)};
}

template <typename T>
double to_double(T value) {
  return value;
}

double to_double(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <typename E>
const Kernels<E>& kernels_for() {
  if constexpr (std::is_same_v<E, bfloat16>) {
    return *bfloat16_kernels();
  } else {
    return kernels<E>();
  }
}

struct Shape {
  CellKind kind;
  int64_t T, B, I, H, P;
  bool bias, state, packed, reverse;
  int threads;

  std::string name() const {
    std::string text = "cell " + std::to_string(static_cast<int>(kind));
    const auto add = [&](const char* label, int64_t value) {
      text += std::string(" ") + label + std::to_string(value);
    };
    add("T", T), add("B", B), add("I", I), add("H", H), add("P", P), add("bias", bias);
    add("state", state), add("packed", packed), add("reverse", reverse), add("threads", threads);
    return text;
  }
};

// The arguments and results of one layer.
template <typename E>
struct Layer {
  using T = sum_t<E>;

  Shape shape;
  Array<int64_t> batch_sizes;
  int64_t N = 0, G, O;
  bool has_state;
  Array<E> x, w_ih, w_hh, w_hr, h0;
  Array<T> b_ih, b_hh, c0;
  Array<E> out, hn;
  Array<T> cn, gates, cells;

  Layer(const Shape& s, unsigned seed) : shape(s) {
    std::mt19937 random(seed);
    const CellTraits traits = cell_traits(s.kind);
    G = traits.gates;
    O = s.P > 0 ? s.P : s.H;
    has_state = traits.has_state;
    int64_t batch = s.B;
    for (int64_t t = 0; t < s.T; ++t) {
      if (s.packed && t > 0)
        batch =
            std::uniform_int_distribution<int64_t>(std::max<int64_t>(1, batch / 2), batch)(random);
      batch_sizes.push_back(batch);
      N += batch;
    }
    batch_sizes.shrink_to_fit();
    const auto fill = [&](auto& a, int64_t n, double scale) {
      std::uniform_real_distribution<double> values(-scale, scale);
      a.resize(static_cast<size_t>(n));
      for (auto& v : a) v = from_double<std::decay_t<decltype(v)>>(values(random));
    };
    const double scale = 1 / std::sqrt(static_cast<double>(s.H));
    fill(x, N * s.I, 1);
    fill(w_ih, G * s.H * s.I, scale);
    fill(w_hh, G * s.H * O, scale);
    if (s.bias) fill(b_ih, G * s.H, scale), fill(b_hh, G * s.H, scale);
    if (s.P > 0) fill(w_hr, s.P * s.H, scale);
    if (s.state) fill(h0, s.B * O, 1);
    if (s.state && has_state) fill(c0, s.B * s.H, 1);
  }

  template <typename A>
  static A* data(Array<A>& a) {
    return a.empty() ? nullptr : a.data();
  }

  SequenceShape sequence() const {
    return {shape.T,      shape.B, shape.I,
            shape.H,      shape.P, shape.packed ? batch_sizes.data() : nullptr,
            shape.reverse};
  }

  LayerWeights<E> weights() { return {data(w_ih), data(w_hh), data(b_ih), data(b_hh), data(w_hr)}; }

  ForwardArgs<E> forward_args(bool train) {
    const auto size = [](int64_t n) { return static_cast<size_t>(n); };
    // A value that is never written must not look like a result.
    const T unset = std::numeric_limits<T>::quiet_NaN();
    out.assign(size(N * O), from_double<E>(unset));
    hn.assign(size(shape.B * O), from_double<E>(unset));
    cn.assign(size(has_state ? shape.B * shape.H : 0), unset);
    gates.assign(size(train ? N * cell_traits(shape.kind).saved * shape.H : 0), unset);
    cells.assign(size(train && has_state ? N * shape.H : 0), unset);
    ForwardArgs<E> args{};
    args.shape = sequence();
    args.weights = weights();
    args.x = x.data();
    args.x_stride = shape.I;
    args.h0 = data(h0);
    args.c0 = data(c0);
    args.out = out.data();
    args.out_stride = O;
    args.hn = hn.data();
    args.cn = data(cn);
    args.gates = data(gates);
    args.cells = data(cells);
    return args;
  }

  void forward(bool train, const Threads& threads) {
    const Array<ForwardArgs<E>> args{forward_args(train)};
    kernels_for<E>().forward(shape.kind, args.data(), 1, 1, threads);
  }

  // Inference with weights packed before; the originals are not there.
  void forward_packed(const Threads& threads) {
    const Kernels<E>& run = kernels_for<E>();
    Array<ForwardArgs<E>> args{forward_args(false)};
    const std::unique_ptr<void, decltype(&std::free)> block(
        allocate(run.packed_bytes(shape.kind, args[0].shape)), &std::free);
    std::byte* const packed = static_cast<std::byte*>(block.get());
    run.pack(shape.kind, args[0].shape, args[0].weights, packed);
    args[0].packed = packed;
    args[0].weights = {};
    run.forward(shape.kind, args.data(), 1, 1, threads);
  }
};

double sigmoid_of(double x) {
  return 1 / (1 + std::exp(-x));
}

// One step of one row, by the formulas of torch's documentation. Products read h rounded to E.
template <typename E>
void naive_step(const Layer<E>& l, const E* x, Array<double>& h, Array<double>& c) {
  const auto read = [](double value) { return to_double(from_double<E>(value)); };
  const int64_t H = l.shape.H;
  Array<double> from_x(static_cast<size_t>(l.G * H));
  Array<double> from_h(from_x.size());
  for (int64_t j = 0; j < l.G * H; ++j) {
    const size_t row = static_cast<size_t>(j);
    double a = l.b_ih.empty() ? 0 : l.b_ih[row];
    double b = l.b_hh.empty() ? 0 : l.b_hh[row];
    for (int64_t k = 0; k < l.shape.I; ++k)
      a += to_double(l.w_ih[size_t(j * l.shape.I + k)]) * to_double(x[k]);
    for (int64_t k = 0; k < l.O; ++k)
      b += to_double(l.w_hh[size_t(j * l.O + k)]) * read(h[size_t(k)]);
    from_x[row] = a;
    from_h[row] = b;
  }
  Array<double> next(static_cast<size_t>(H));
  for (int64_t u = 0; u < H; ++u) {
    const auto sum = [&](int64_t g) {
      return from_x[size_t(g * H + u)] + from_h[size_t(g * H + u)];
    };
    const size_t i = static_cast<size_t>(u);
    switch (l.shape.kind) {
      case CellKind::lstm:
        c[i] = sigmoid_of(sum(1)) * c[i] + sigmoid_of(sum(0)) * std::tanh(sum(2));
        next[i] = sigmoid_of(sum(3)) * std::tanh(c[i]);
        break;
      case CellKind::gru: {
        const double n =
            std::tanh(from_x[size_t(2 * H + u)] + sigmoid_of(sum(0)) * from_h[size_t(2 * H + u)]);
        const double z = sigmoid_of(sum(1));
        next[i] = (1 - z) * n + z * h[i];
        break;
      }
      case CellKind::rnn_tanh:
        next[i] = std::tanh(sum(0));
        break;
      case CellKind::rnn_relu:
        next[i] = std::max(0.0, sum(0));
        break;
    }
  }
  if (l.shape.P == 0) {
    h = next;
    return;
  }
  for (int64_t p = 0; p < l.shape.P; ++p) {
    double a = 0;
    for (int64_t u = 0; u < H; ++u)
      a += to_double(l.w_hr[size_t(p * H + u)]) * read(next[size_t(u)]);
    h[size_t(p)] = a;
  }
}

template <typename E>
void check_forward(Layer<E>& l, const std::string& name) {
  Array<int64_t> offsets{0};
  for (const int64_t batch : l.batch_sizes) offsets.push_back(offsets.back() + batch);
  double worst = 0;
  double total = 0;
  double count = 0;
  const auto compare = [&](double expected, auto got) {
    const double error = std::abs(expected - to_double(got));
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    total += error;
    ++count;
  };
  const auto rounded = [](double h) { return to_double(from_double<E>(h)); };
  for (int64_t b = 0; b < l.shape.B; ++b) {
    Array<double> h(static_cast<size_t>(l.O)), c(static_cast<size_t>(l.shape.H));
    for (int64_t u = 0; u < l.O && !l.h0.empty(); ++u)
      h[size_t(u)] = to_double(l.h0[size_t(b * l.O + u)]);
    if (!l.c0.empty()) std::copy_n(l.c0.begin() + b * l.shape.H, l.shape.H, c.begin());
    for (int64_t s = 0; s < l.shape.T; ++s) {
      const int64_t t = l.shape.reverse ? l.shape.T - 1 - s : s;
      if (b >= l.batch_sizes[size_t(t)]) continue;
      const int64_t row = offsets[size_t(t)] + b;
      naive_step(l, l.x.data() + row * l.shape.I, h, c);
      for (int64_t u = 0; u < l.O; ++u)
        compare(rounded(h[size_t(u)]), l.out[size_t(row * l.O + u)]);
    }
    for (int64_t u = 0; u < l.O; ++u) compare(rounded(h[size_t(u)]), l.hn[size_t(b * l.O + u)]);
    for (int64_t u = 0; l.has_state && u < l.shape.H; ++u)
      compare(c[size_t(u)], l.cn[size_t(b * l.shape.H + u)]);
  }
  if constexpr (sizeof(E) == 2) {
    // Sums of another order are now and then rounded to the neighbour, 2^-8 away.
    expect(worst < 0.01 && total / count < 1e-4, name + ": forward differs by " +
                                                     std::to_string(worst) + ", on average by " +
                                                     std::to_string(total / count));
  } else {
    const double tolerance = sizeof(E) == 4 ? 2e-5 : 1e-11;
    expect(worst < tolerance, name + ": forward differs by " + std::to_string(worst));
  }
}

// The gradients of every argument, in the order of `arguments`, for those of the results.
template <typename E>
struct LayerGradients {
  using T = sum_t<E>;

  Array<T> of[8];
  BackwardArgs<E> args{};

  LayerGradients(Layer<E>& l, const Array<T>& grad_out, const Array<T>& grad_hn,
                 const Array<T>& grad_cn) {
    const size_t sizes[] = {l.x.size(),    l.w_ih.size(), l.w_hh.size(), l.b_ih.size(),
                            l.b_hh.size(), l.w_hr.size(), l.h0.size(),   l.c0.size()};
    for (int i = 0; i < 8; ++i) of[i].assign(sizes[i], std::numeric_limits<T>::quiet_NaN());
    const auto data = [](auto& a) { return Layer<E>::data(a); };
    args.shape = l.sequence();
    args.weights = l.weights();
    args.x = l.x.data();
    args.x_stride = l.shape.I;
    args.h0 = data(l.h0);
    args.c0 = data(l.c0);
    args.out = l.out.data();
    args.out_stride = l.O;
    args.gates = data(l.gates);
    args.cells = data(l.cells);
    args.grad_out = grad_out.data();
    args.grad_out_stride = l.O;
    args.grad_hn = grad_hn.data();
    args.grad_cn = l.has_state ? grad_cn.data() : nullptr;
    args.grad_x = data(of[0]);
    args.grad_w_ih = data(of[1]);
    args.grad_w_hh = data(of[2]);
    args.grad_b_ih = data(of[3]);
    args.grad_b_hh = data(of[4]);
    args.grad_w_hr = data(of[5]);
    args.grad_h0 = data(of[6]);
    args.grad_c0 = data(of[7]);
  }

  LayerGradients(Layer<E>& l, const Array<T>& grad_out, const Array<T>& grad_hn,
                 const Array<T>& grad_cn, const Threads& threads)
      : LayerGradients(l, grad_out, grad_hn, grad_cn) {
    const Array<BackwardArgs<E>> alone{args};
    kernels_for<E>().backward(l.shape.kind, alone.data(), 1, 1, threads);
  }
};

template <typename T>
Array<T> normal_values(size_t size, std::mt19937& random) {
  std::normal_distribution<double> normal;
  Array<T> values(size);
  std::generate(values.begin(), values.end(), [&] { return static_cast<T>(normal(random)); });
  return values;
}

// How results differ that should be the same.
struct Difference {
  double worst = 0;
  double largest = 1;            // of the values, or 1
  double errors = 0, sizes = 0;  // sums of squares, of the differences and of the values

  template <typename V, typename W>
  Difference(const Array<V>& expected, const Array<W>& got) {
    for (size_t i = 0; i < expected.size(); ++i) {
      const double value = to_double(expected[i]);
      const double error = std::abs(value - to_double(got[i]));
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
      largest = std::max(largest, std::abs(value));
      errors += error * error;
      sizes += value * value;
    }
  }

  std::string text() const {
    return " differs by " + std::to_string(worst) + " of " + std::to_string(largest);
  }
};

// Sums of other tiles come in another order, and are then now and then rounded otherwise.
template <typename E>
constexpr double kOtherwiseRounded = sizeof(E) == 2   ? 0.02
                                     : sizeof(E) == 4 ? 2e-5
                                                      : 1e-11;

// Two directions of a layer in one call against one after the other, each on its own.
template <typename E>
void check_directions(const Shape& shape, unsigned seed, const Threads& threads,
                      const std::string& name) {
  using T = sum_t<E>;
  const Threads alone{1, threads.run};
  Shape opposite = shape;
  opposite.reverse = !shape.reverse;
  Layer<E> one[] = {{shape, seed}, {opposite, seed}};
  Layer<E> both[] = {{shape, seed}, {opposite, seed}};
  for (Layer<E>& l : one) l.forward(true, alone);
  const Array<ForwardArgs<E>> forward{both[0].forward_args(true), both[1].forward_args(true)};
  kernels_for<E>().forward(shape.kind, forward.data(), 1, 2, threads);

  std::mt19937 random(seed);
  const auto like = [&](size_t size) { return normal_values<T>(size, random); };
  const Array<T> grad_out = like(one[0].out.size());
  const Array<T> grad_hn = like(one[0].hn.size());
  const Array<T> grad_cn = like(one[0].cn.size());
  using Gradients = LayerGradients<E>;
  Gradients expected[] = {{one[0], grad_out, grad_hn, grad_cn, alone},
                          {one[1], grad_out, grad_hn, grad_cn, alone}};
  Gradients got[] = {{both[0], grad_out, grad_hn, grad_cn}, {both[1], grad_out, grad_hn, grad_cn}};
  for (size_t j = 0; j < expected[0].of[0].size(); ++j)
    expected[0].of[0][j] += expected[1].of[0][j];
  Array<BackwardArgs<E>> backward{got[0].args, got[1].args};
  backward[1].grad_x = backward[0].grad_x;
  backward[1].add_to_grad_x = true;
  kernels_for<E>().backward(shape.kind, backward.data(), 1, 2, threads);

  const auto compare = [&](const auto& expected, const auto& got, const std::string& what) {
    const Difference found(expected, got);
    expect(found.worst <= kOtherwiseRounded<E> * found.largest,
           name + ": two directions, " + what + found.text());
  };
  for (int d = 0; d < 2; ++d) {
    compare(one[d].out, both[d].out, "out");
    compare(one[d].hn, both[d].hn, "hn");
    compare(one[d].cn, both[d].cn, "cn");
    for (int i = d; i < 8; ++i)  // The gradient of x is the first one's.
      compare(expected[d].of[i], got[d].of[i], "gradient " + std::to_string(i));
  }
}

// A stack of layers in one call against one after the other, each on its own. In inference no
// layer's output is kept longer than the next one reads it, backward no gradient of x.
template <typename E>
void check_layers(const Shape& first, int count, unsigned seed, const Threads& threads,
                  const std::string& name) {
  using T = sum_t<E>;
  const Kernels<E>& run = kernels_for<E>();
  const Threads alone{1, threads.run};
  const auto stack = [&] {
    std::vector<Layer<E>> layers;
    Shape shape = first;
    for (int i = 0; i < count; ++i) {
      layers.emplace_back(shape, seed);  // of one seed, so that all have the same batch sizes
      shape.I = layers.back().O;
    }
    return layers;
  };
  std::vector<Layer<E>> one = stack();
  std::vector<Layer<E>> all = stack();
  std::mt19937 random(seed);
  const auto like = [&](size_t size) { return normal_values<T>(size, random); };
  // How far another rounding takes single values of bfloat16 depends on the layers after it, so
  // those are compared as a whole.
  const auto compare = [&](const auto& expected, const auto& got, size_t i,
                           const std::string& what) {
    constexpr double kTolerance = kOtherwiseRounded<E>;
    const Difference found(expected, got);
    expect(sizeof(E) == 2 ? found.errors <= kTolerance * kTolerance * found.sizes
                          : found.worst <= kTolerance * found.largest,
           name + ": layer " + std::to_string(i) + " of " + std::to_string(count) + ", " + what +
               found.text());
  };

  for (const bool train : {false, true}) {
    for (size_t i = 0; i < one.size(); ++i) {
      if (i > 0) one[i].x = one[i - 1].out;
      one[i].forward(train, alone);
    }
    Array<ForwardArgs<E>> args;
    args.reserve(all.size());
    for (size_t i = 0; i < all.size(); ++i) {
      args.push_back(all[i].forward_args(train));
      if (!train && i > 1) args[i].out = args[i - 2].out;
      if (i > 0) args[i].x = args[i - 1].out;
    }
    run.forward(first.kind, args.data(), count, 1, threads);
    const std::string way = train ? "training, " : "inference, ";
    for (size_t i = 0; i < one.size(); ++i) {
      compare(one[i].hn, all[i].hn, i, way + "hn");
      compare(one[i].cn, all[i].cn, i, way + "cn");
      if (train) compare(one[i].out, all[i].out, i, way + "out");
    }
    const size_t last = one.size() - 1;
    compare(one[last].out, all[train || last < 2 ? last : last % 2].out, last, way + "out");
  }

  // From the last layer on, each with the gradient of x of the one above.
  const Array<T> grad_out = like(one.back().out.size());
  const Array<T> grad_hn = like(one[0].hn.size());
  const Array<T> grad_cn = like(one[0].cn.size());
  std::vector<LayerGradients<E>> expected, got;
  Array<BackwardArgs<E>> args;
  args.reserve(all.size());
  for (size_t i = one.size(); i-- > 0;) {
    const Array<T> above = expected.empty() ? grad_out : expected.back().of[0];
    expected.emplace_back(one[i], above, grad_hn, grad_cn, alone);
    if (i > 0) all[i].x = all[i - 1].out;
    got.emplace_back(all[i], grad_out, grad_hn, grad_cn);
    args.push_back(got.back().args);
    if (args.size() > 1) args.back().grad_out = args[args.size() - 2].grad_x;
    if (args.size() > 2 && i > 0) args.back().grad_x = args[args.size() - 3].grad_x;
  }
  run.backward(first.kind, args.data(), count, 1, threads);
  for (size_t i = 0; i < expected.size(); ++i) {
    // Only the first layer's gradient of x is kept.
    for (int j = i + 1 < expected.size() ? 1 : 0; j < 8; ++j)
      compare(expected[i].of[j], got[i].of[j], expected.size() - 1 - i,
              "gradient " + std::to_string(j));
  }
}

// The gradients of a layer from weights packed before, whose originals are not there.
template <typename E>
void check_packed_backward(const Shape& shape, unsigned seed, const Threads& threads,
                           const std::string& name) {
  using T = sum_t<E>;
  const Kernels<E>& run = kernels_for<E>();
  Layer<E> l(shape, seed);
  l.forward(true, threads);
  std::mt19937 random(seed);
  const auto like = [&](size_t size) { return normal_values<T>(size, random); };
  const Array<T> grad_out = like(l.out.size());
  const Array<T> grad_hn = like(l.hn.size());
  const Array<T> grad_cn = like(l.cn.size());
  const LayerGradients<E> expected(l, grad_out, grad_hn, grad_cn, threads);
  LayerGradients<E> got(l, grad_out, grad_hn, grad_cn);
  const std::unique_ptr<void, decltype(&std::free)> block(
      allocate(run.packed_backward_bytes(shape.kind, got.args.shape)), &std::free);
  std::byte* const packed = static_cast<std::byte*>(block.get());
  run.pack_backward(shape.kind, got.args.shape, got.args.weights, packed);
  Array<BackwardArgs<E>> args{got.args};
  args[0].packed = packed;
  args[0].weights = {};
  run.backward(shape.kind, args.data(), 1, 1, threads);
  for (int i = 0; i < 8; ++i) {
    const Difference found(expected.of[i], got.of[i]);
    expect(found.worst <= kOtherwiseRounded<E> * found.largest,
           name + ": packed before, gradient " + std::to_string(i) + found.text());
  }
}

// The gradients of the weights of three steps, two of them as one product, against the sum of those
// that each step gives by itself.
template <typename E>
void check_weight_gradients(const Shape& shape, unsigned seed, const Threads& threads,
                            const std::string& name) {
  using T = sum_t<E>;
  constexpr int64_t kSteps = 3;
  constexpr T kUnset = std::numeric_limits<T>::quiet_NaN();
  const Kernels<E>& run = kernels_for<E>();
  const int64_t B = shape.B;
  const int64_t D = delta_stride<E>(cell_traits(shape.kind).sums * shape.H);
  std::mt19937 random(seed);
  Array<E> deltas(static_cast<size_t>(kSteps * B * D), from_double<E>(kUnset));
  Array<E> x, h_prev;
  x.reserve(static_cast<size_t>(kSteps * B * shape.I));
  h_prev.reserve(static_cast<size_t>(kSteps * B * shape.H));
  Array<double> expected[5];
  std::optional<LayerGradients<E>> got;
  for (int64_t step = 0; step < kSteps; ++step) {
    Layer<E> l(shape, seed + static_cast<unsigned>(step));
    l.forward(true, threads);
    const auto like = [&](size_t size) { return normal_values<T>(size, random); };
    const Array<T> grad_out = like(l.out.size());
    const Array<T> grad_hn = like(l.hn.size());
    const Array<T> grad_cn = like(l.cn.size());
    const LayerGradients<E> alone(l, grad_out, grad_hn, grad_cn, threads);
    got.emplace(l, grad_out, grad_hn, grad_cn);
    Array<BackwardArgs<E>> args{got->args};
    args[0].grad_w_ih = args[0].grad_w_hh = args[0].grad_b_ih = args[0].grad_b_hh = nullptr;
    args[0].deltas = deltas.data() + step * B * D;
    run.backward(shape.kind, args.data(), 1, 1, threads);
    for (const int i : {0, 6, 7}) {
      const Difference found(alone.of[i], got->of[i]);
      expect(found.worst <= 0, name + ": keeping deltas, gradient " + std::to_string(i));
    }
    for (int i = 1; i < 5; ++i) {
      expected[i].resize(alone.of[i].size());
      for (size_t j = 0; j < alone.of[i].size(); ++j) expected[i][j] += alone.of[i][j];
    }
    x.insert(x.end(), l.x.begin(), l.x.end());
    h_prev.insert(h_prev.end(), l.h0.begin(), l.h0.end());
  }
  BackwardArgs<E> args = got->args;
  args.weights = {};
  args.out = nullptr;
  for (const int64_t first : {int64_t{0}, kSteps - 1}) {
    args.shape.B = first == 0 ? (kSteps - 1) * B : B;
    args.x = x.data() + first * B * shape.I;
    args.h0 = h_prev.data() + first * B * shape.H;
    args.deltas = deltas.data() + first * B * D;
    run.weight_gradients(shape.kind, args, first > 0, threads);
  }
  for (int i = 1; i < 5; ++i) {
    const Difference found(expected[i], got->of[i]);
    expect(found.worst <= kOtherwiseRounded<T> * found.largest,
           name + ": weights of steps, gradient " + std::to_string(i) + found.text());
  }
}

// <gradient, direction> against the central difference of the loss along a random direction of
// every argument at once.
void check_backward(Layer<double>& l, const Threads& threads, const std::string& name) {
  std::mt19937 random(7);
  const auto like = [&](const Array<double>& a) { return normal_values<double>(a.size(), random); };
  l.forward(true, threads);
  const Array<double> grad_out = like(l.out);
  const Array<double> grad_hn = like(l.hn);
  const Array<double> grad_cn = like(l.cn);

  Array<double>* const arguments[] = {&l.x,    &l.w_ih, &l.w_hh, &l.b_ih,
                                      &l.b_hh, &l.w_hr, &l.h0,   &l.c0};
  const LayerGradients<double> gradients(l, grad_out, grad_hn, grad_cn, threads);

  Array<double> directions[8];
  double predicted = 0;
  double scale = 1;
  for (int i = 0; i < 8; ++i) {
    directions[i] = like(*arguments[i]);
    for (size_t j = 0; j < directions[i].size(); ++j) {
      predicted += gradients.of[i][j] * directions[i][j];
      scale += std::abs(gradients.of[i][j] * directions[i][j]);
    }
  }
  const auto loss = [&](double along) {
    for (int i = 0; i < 8; ++i) {
      for (size_t j = 0; j < directions[i].size(); ++j)
        (*arguments[i])[j] += along * directions[i][j];
    }
    l.forward(false, threads);
    for (int i = 0; i < 8; ++i) {
      for (size_t j = 0; j < directions[i].size(); ++j)
        (*arguments[i])[j] -= along * directions[i][j];
    }
    double total = 0;
    for (size_t j = 0; j < l.out.size(); ++j) total += l.out[j] * grad_out[j];
    for (size_t j = 0; j < l.hn.size(); ++j) total += l.hn[j] * grad_hn[j];
    for (size_t j = 0; j < l.cn.size(); ++j) total += l.cn[j] * grad_cn[j];
    return total;
  };
  // A relu has kinks, which a short step seldom crosses.
  const double step = l.shape.kind == CellKind::rnn_relu ? 1e-9 : 1e-6;
  const double measured = (loss(step) - loss(-step)) / (2 * step);
  const double error = std::abs(predicted - measured) / scale;
  expect(error < 1e-7, name + ": gradient " + std::to_string(predicted) + ", difference quotient " +
                           std::to_string(measured));
}

// The gradients of bfloat16 against those of the same layer in double.
void check_narrow_backward(Layer<bfloat16>& l, const Threads& threads, const std::string& name) {
  Layer<double> exact(l.shape, 0);
  const auto widen = [](const auto& from, Array<double>& to) {
    to.clear();
    to.reserve(from.size());
    for (const auto value : from) to.push_back(to_double(value));
  };
  widen(l.x, exact.x), widen(l.w_ih, exact.w_ih), widen(l.w_hh, exact.w_hh);
  widen(l.b_ih, exact.b_ih), widen(l.b_hh, exact.b_hh), widen(l.w_hr, exact.w_hr);
  widen(l.h0, exact.h0), widen(l.c0, exact.c0);
  exact.batch_sizes = l.batch_sizes;
  exact.N = l.N;
  l.forward(true, threads);
  exact.forward(true, threads);
  // A relu close to its kink may fall on the other side, which its output tells the backward pass.
  if (l.shape.kind == CellKind::rnn_relu) widen(l.out, exact.out);
  std::mt19937 random(7);
  const auto like = [&](size_t size) { return normal_values<float>(size, random); };
  const auto wide = [&](const Array<float>& a) { return Array<double>(a.begin(), a.end()); };
  const Array<float> grad_out = like(l.out.size());
  const Array<float> grad_hn = like(l.hn.size());
  const Array<float> grad_cn = like(l.cn.size());
  const LayerGradients<bfloat16> got(l, grad_out, grad_hn, grad_cn, threads);
  const LayerGradients<double> expected(exact, wide(grad_out), wide(grad_hn), wide(grad_cn),
                                        threads);
  for (int i = 0; i < 8; ++i) {
    double error = 0;
    double norm = 0;
    for (size_t j = 0; j < expected.of[i].size(); ++j) {
      const double difference = got.of[i][j] - expected.of[i][j];
      error += difference * difference;
      norm += expected.of[i][j] * expected.of[i][j];
    }
    // Deltas and h are rounded by up to 2^-9.
    const double relative = norm > 0 ? std::sqrt(error / norm) : error;
    expect(relative < 0.006,
           name + ": gradient " + std::to_string(i) + " differs by " + std::to_string(relative));
  }
}

template <typename T>
double ulps(T got, long double exact) {
  const T rounded = static_cast<T>(exact);
  if (std::isnan(exact)) return std::isnan(got) ? 0 : INFINITY;
  if (std::isinf(rounded)) return got == rounded ? 0 : INFINITY;
  const T next = std::nextafter(std::abs(rounded), std::numeric_limits<T>::infinity());
  return static_cast<double>(std::abs(static_cast<long double>(got) - exact) /
                             (static_cast<long double>(next) - std::abs(rounded)));
}

// Values over the whole range of T: evenly spaced bit patterns of all signs and exponents, a dense
// set where the functions bend, and the special ones.
template <typename T>
Array<T> whole_range() {
  Array<T> values{T(0),
                  T(-0.0),
                  std::numeric_limits<T>::infinity(),
                  -std::numeric_limits<T>::infinity(),
                  std::numeric_limits<T>::quiet_NaN(),
                  std::numeric_limits<T>::denorm_min(),
                  std::numeric_limits<T>::max(),
                  std::numeric_limits<T>::lowest()};
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  constexpr int kSamples = 150000;
  const Bits stride = std::numeric_limits<Bits>::max() / kSamples;
  for (Bits i = 0; i < kSamples; ++i) {
    const Bits bits = i * stride;
    T value;
    std::memcpy(&value, &bits, sizeof value);
    values.push_back(value);
  }
  for (int i = -50000; i <= 50000; ++i) values.push_back(static_cast<T>(i * 0.0021));
  return values;
}

template <typename T>
void check_activations(const std::string& name) {
  const Array<T> x = whole_range<T>();
  Array<T> y(x.size());
  double worst = 0;
  const auto compare = [&](auto&& exact) {
    worst = 0;
    for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, ulps(y[i], exact(x[i])));
  };
  constexpr double kBound = 3;  // as csrc/cpu/simd/math.h promises
  kernels<T>().tanh(x.data(), y.data(), static_cast<int64_t>(x.size()));
  compare([](T v) { return std::tanh(static_cast<long double>(v)); });
  expect(worst <= kBound, name + ": tanh is off by " + std::to_string(worst) + " ulp");
  std::printf("%s: tanh %.2f ulp", name.c_str(), worst);
  kernels<T>().sigmoid(x.data(), y.data(), static_cast<int64_t>(x.size()));
  compare([](T v) { return 1 / (1 + std::exp(-static_cast<long double>(v))); });
  expect(worst <= kBound, name + ": sigmoid is off by " + std::to_string(worst) + " ulp");
  std::printf(", sigmoid %.2f ulp\n", worst);
}

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  constexpr CellKind kKinds[] = {CellKind::lstm, CellKind::gru, CellKind::rnn_tanh,
                                 CellKind::rnn_relu};
  for (const CellKind kind : kKinds) {
    //             T   B   I   H   P  bias   state  packed reverse threads
    all.push_back({kind, 1, 1, 1, 1, 0, true, true, false, false, 1});
    all.push_back({kind, 1, 3, 17, 31, 0, true, false, false, false, 1});
    all.push_back({kind, 1, 13, 5, 33, 0, true, true, false, true, 2});
    all.push_back({kind, 1, 7, 19, 31, 0, true, true, false, false, 1});
    all.push_back({kind, 1, 8, 2, 65, 0, false, true, false, false, 2});
    // One row: few steps, in place; more, from panels.
    all.push_back({kind, 2, 1, 3, 33, 0, true, true, false, true, 1});
    all.push_back({kind, 4, 1, 1, 32, 0, true, true, false, false, 1});
    all.push_back({kind, 7, 1, 1, 32, 0, true, true, false, false, 1});
    // Few rows: one tile of them, multiplied in parts where registers are few.
    all.push_back({kind, 6, 4, 5, 33, 0, true, true, false, false, 1});
    all.push_back({kind, 6, 2, 5, 41, 0, true, true, true, true, 1});
    all.push_back({kind, 3, 5, 18, 19, 0, true, false, true, true, 1});
    all.push_back({kind, 9, 3, 3, 17, 0, false, false, false, true, 1});
    all.push_back({kind, 5, 17, 31, 65, 0, true, true, true, false, 2});
    all.push_back({kind, 7, 11, 33, 15, 0, true, true, true, true, 3});
    all.push_back({kind, 70, 9, 2, 33, 0, true, true, true, false, 1});
    all.push_back({kind, 4, 2, 129, 193, 0, true, true, false, false, 2});
    all.push_back({kind, 3, 40, 30, 80, 0, true, false, false, false, 3});
    // Rows of a falling batch divided between threads.
    all.push_back({kind, 30, 40, 20, 33, 0, true, true, true, false, 2});
    all.push_back({kind, 30, 40, 20, 33, 0, true, true, true, true, 3});
    // Units divided between threads.
    all.push_back({kind, 9, 3, 40, 257, 0, true, true, true, false, 2});
    all.push_back({kind, 9, 3, 40, 271, 0, true, true, true, true, 3});
    const int64_t T = cell_traits(kind).gates > 1 ? 60 : 240;
    all.push_back({kind, T, 12, 2, 129, 0, true, true, true, false, 1});
    all.push_back({kind, T, 9, 2, 129, 0, true, true, false, true, 2});
  }
  // Few rows divided between threads, of weights for which units could be.
  for (const CellKind kind : {CellKind::lstm, CellKind::gru}) {
    all.push_back({kind, 20, 5, 40, 67, 0, true, true, true, false, 2});
    all.push_back({kind, 20, 8, 40, 67, 0, true, true, false, true, 3});
    all.push_back({kind, 30, 3, 40, 67, 0, true, true, true, false, 3});
  }
  all.push_back({CellKind::lstm, 20, 6, 40, 67, 30, true, true, true, true, 2});
  // One step, rows divided: as lanes, if a team had them all, of too many.
  all.push_back({CellKind::lstm, 1, 64, 1400, 13, 0, true, true, false, false, 2});
  // A last block of few units, all of whose gates lie side by side: in one vector, two or three.
  for (const CellKind kind : {CellKind::lstm, CellKind::gru}) {
    all.push_back({kind, 7, 1, 19, 50, 0, true, true, false, false, 1});
    all.push_back({kind, 7, 13, 19, 41, 0, true, true, true, true, 2});
    all.push_back({kind, 9, 2, 19, 74, 0, true, false, false, false, 1});
    all.push_back({kind, 5, 3, 40, 100, 0, true, true, true, false, 1});
    all.push_back({kind, 4, 11, 3, 18, 0, true, true, false, true, 1});
  }
  // The same of large weights, packed in passing, and of ones beyond the caches, whose tiles call
  // for panels.
  all.push_back({CellKind::lstm, 4, 4, 1000, 321, 0, true, false, false, false, 2});
  all.push_back({CellKind::gru, 4, 3, 5500, 321, 0, true, true, false, false, 1});
  // Gradients of large weights and inputs: operands copied, in parts of k and of the columns, dense
  // and packed, and with threads of which some have too little for that.
  all.push_back({CellKind::lstm, 13, 41, 601, 37, 0, true, true, false, false, 1});
  all.push_back({CellKind::gru, 12, 75, 300, 100, 0, true, true, true, true, 2});
  all.push_back({CellKind::rnn_tanh, 9, 12, 270, 270, 0, false, false, false, false, 3});
  // Gradients of large inputs of few rows: w_ih packed for two tiles.
  all.push_back({CellKind::lstm, 4, 4, 480, 160, 0, true, true, false, false, 1});
  // Several chunks of the backward pass: dense and packed, of small products and, in double, of
  // large ones; with and without rows that come from zeros.
  all.push_back({CellKind::lstm, 28, 41, 5, 390, 3, true, false, false, true, 1});
  all.push_back({CellKind::lstm, 6, 400, 5, 390, 3, true, true, true, false, 2});
  all.push_back({CellKind::lstm, 18, 29, 270, 195, 3, true, false, false, false, 2});
  // Weights beyond the caches, in both types: read in place by one row, input products ahead for
  // several.
  all.push_back({CellKind::lstm, 2, 1, 3, 1300, 0, true, true, false, false, 2});
  all.push_back({CellKind::lstm, 2, 7, 3, 1300, 0, true, true, false, false, 1});
  all.push_back({CellKind::gru, 2, 1, 3, 1500, 0, true, true, false, false, 1});
  // Panels packed in passing: with the first step, dense from zeros, packed, by threads, in
  // bfloat16 too; in reverse, where that step may have too few rows; with the input products of all
  // steps.
  all.push_back({CellKind::lstm, 3, 7, 520, 337, 0, true, false, false, false, 1});
  all.push_back({CellKind::gru, 3, 7, 700, 401, 0, true, true, true, false, 2});
  all.push_back({CellKind::gru, 3, 5, 700, 401, 0, true, false, true, true, 1});
  all.push_back({CellKind::lstm, 3, 6, 700, 401, 50, true, true, false, false, 2});
  all.push_back({CellKind::gru, 3, 5, 1100, 600, 0, true, false, false, false, 1});
  all.push_back({CellKind::lstm, 11, 3, 500, 353, 0, true, false, true, false, 1});
  // w_hh from memory: panels of two rows and, packed for many calls, of one that threads divide.
  all.push_back({CellKind::gru, 4, 2, 3, 1500, 0, true, true, false, false, 2});
  all.push_back({CellKind::rnn_tanh, 4, 2, 3, 2100, 0, true, true, true, true, 1});
  all.push_back({CellKind::lstm, 3, 1, 3, 900, 0, true, true, false, false, 2});
  // w_ih from memory: dot products of up to four rows of one sequence and 16 of several, dense and
  // packed, by threads; input products of all steps at once, with a projection too (more steps, and
  // chunks: tests/test_layers.py).
  all.push_back({CellKind::lstm, 4, 1, 2100, 257, 0, true, true, false, false, 1});
  all.push_back({CellKind::gru, 3, 1, 2701, 261, 0, true, false, false, true, 2});
  all.push_back({CellKind::rnn_tanh, 2, 2, 4300, 509, 0, true, true, true, false, 3});
  all.push_back({CellKind::lstm, 4, 4, 2100, 257, 0, true, false, false, false, 1});
  all.push_back({CellKind::lstm, 5, 1, 2100, 257, 0, true, true, false, false, 1});
  all.push_back({CellKind::gru, 9, 3, 2701, 261, 0, true, false, true, false, 2});
  all.push_back({CellKind::rnn_relu, 4, 2, 4300, 509, 0, false, false, true, true, 1});
  all.push_back({CellKind::lstm, 10, 4, 2100, 257, 40, true, false, false, false, 2});
  // Large weights, one row, up to 16 steps: w_hh in place, input products ahead, from panels and as
  // dot products; few steps with a projection, units divided between threads.
  all.push_back({CellKind::gru, 16, 1, 130, 380, 0, true, true, true, true, 1});
  all.push_back({CellKind::lstm, 9, 1, 640, 310, 0, true, true, false, false, 2});
  all.push_back({CellKind::lstm, 4, 1, 120, 210, 120, true, true, false, true, 2});
  // One step, large weights: read in place for more rows, those that fill two vectors as lanes.
  all.push_back({CellKind::lstm, 1, 22, 261, 300, 0, true, true, false, false, 1});
  all.push_back({CellKind::gru, 1, 31, 330, 300, 0, true, true, false, false, 2});
  all.push_back({CellKind::rnn_tanh, 1, 32, 300, 600, 0, true, true, false, false, 1});
  all.push_back({CellKind::lstm, 1, 32, 100, 320, 0, true, true, false, false, 2});
  all.push_back({CellKind::gru, 1, 32, 400, 500, 0, true, true, false, false, 1});
  all.push_back({CellKind::lstm, 12, 5, 70, 129, 70, true, true, true, true, 2});
  all.push_back({CellKind::lstm, 1, 2, 7, 19, 5, true, true, false, false, 1});
  all.push_back({CellKind::lstm, 6, 5, 7, 33, 17, true, true, true, true, 2});
  all.push_back({CellKind::lstm, 4, 3, 130, 150, 70, false, false, false, false, 2});
  // One row, w_hh of a little more than L1 holds: a panel at a time.
  for (const CellKind kind : {CellKind::lstm, CellKind::gru}) {
    all.push_back({kind, 5, 1, 3, 67, 0, true, true, false, true, 1});
    all.push_back({kind, 14, 1, 3, 163, 0, true, true, false, false, 2});
  }
  // From zeros, of which a finite w_hh makes zeros.
  for (const CellKind kind : kKinds) {
    all.push_back({kind, 1, 21, 5, 65, 0, true, false, false, true, 1});
    all.push_back({kind, 4, 21, 5, 65, 0, true, false, true, false, 1});
    all.push_back({kind, 4, 2, 5, 130, 0, true, false, false, true, 1});
  }
  all.push_back({CellKind::lstm, 20, 29, 5, 300, 3, true, true, false, false, 1});
  // One row of a sequence: w_hh in place, in turns and what is left of them, or a panel at a time.
  all.push_back({CellKind::gru, 11, 1, 3, 251, 0, true, true, false, true, 1});
  all.push_back({CellKind::rnn_tanh, 11, 1, 3, 299, 0, true, false, false, false, 2});
  // The same of rows that are whole cache lines: of more steps.
  all.push_back({CellKind::rnn_tanh, 33, 1, 9, 192, 0, true, true, false, true, 1});
  all.push_back({CellKind::lstm, 23, 1, 150, 176, 0, true, true, true, false, 2});
  all.push_back({CellKind::lstm, 19, 1, 5, 130, 112, true, false, false, false, 1});
  all.push_back({CellKind::lstm, 18, 1, 3, 141, 0, true, true, false, false, 1});
  all.push_back({CellKind::lstm, 5, 2, 3, 165, 0, true, true, false, false, 1});
  // One row read in place: vectors on end, single ones and a part of one.
  for (const CellKind kind : {CellKind::lstm, CellKind::gru, CellKind::rnn_tanh})
    all.push_back({kind, 1, 1, 153, 211, 0, true, true, false, false, 1});
  // Few steps of several rows in place, as many as share a load, one more, two and three, and up to
  // the most: dense, packed, in reverse, with a projection, threads with different units or rows.
  for (const CellKind kind : {CellKind::lstm, CellKind::gru, CellKind::rnn_relu}) {
    all.push_back({kind, 2, 7, 33, 67, 0, true, true, true, false, 1});
    all.push_back({kind, 2, 5, 170, 197, 0, true, false, false, true, 2});
    all.push_back({kind, 3, 4, 20, 100, 0, false, true, false, false, 1});
    all.push_back({kind, 3, 2, 129, 193, 0, true, true, true, true, 2});
    all.push_back({kind, 2, 8, 41, 83, 0, true, true, false, false, 1});
    all.push_back({kind, 2, 2, 41, 83, 0, true, true, true, false, 1});
  }
  all.push_back({CellKind::lstm, 3, 3, 20, 100, 0, true, true, true, false, 1});
  all.push_back({CellKind::lstm, 3, 4, 1600, 13, 0, true, true, true, false, 2});
  all.push_back({CellKind::lstm, 2, 6, 20, 90, 37, true, true, true, true, 2});
  // Input products of few steps of few rows as dot products ahead of them: rows of whole vectors
  // and not, w_hh in place and from panels, threads with different units, from zeros, packed, in
  // float as many as may be and one more, in bfloat16 of several sequences.
  for (const CellKind kind : {CellKind::lstm, CellKind::gru, CellKind::rnn_tanh}) {
    all.push_back({kind, 2, 1, 128, 67, 0, true, true, false, false, 1});
    all.push_back({kind, 7, 1, 137, 83, 0, true, true, false, true, 2});
    all.push_back({kind, 16, 1, 261, 64, 0, true, false, true, false, 1});
    all.push_back({kind, 3, 2, 261, 50, 0, false, true, true, true, 1});
    all.push_back({kind, 4, 2, 256, 130, 0, true, true, false, false, 2});
    all.push_back({kind, 4, 8, 512, 81, 0, true, true, false, true, 2});
    all.push_back({kind, 11, 3, 512, 33, 0, true, false, false, false, 1});
    all.push_back({kind, 5, 6, 350, 50, 0, true, true, true, false, 1});
    all.push_back({kind, 24, 1, 257, 64, 0, true, true, false, false, 1});
    all.push_back({kind, 4, 5, 700, 40, 0, true, true, true, false, 1});
  }
  all.push_back({CellKind::lstm, 6, 1, 150, 90, 37, true, true, false, true, 2});
  // One step of many rows in place: all rows of weights whole cache lines, in one type or in all.
  for (const CellKind kind : {CellKind::lstm, CellKind::gru, CellKind::rnn_relu}) {
    all.push_back({kind, 1, 29, 96, 64, 0, true, true, false, false, 1});
    all.push_back({kind, 1, 64, 256, 160, 0, true, true, false, true, 2});
    all.push_back({kind, 1, 47, 256, 64, 0, false, false, false, false, 1});
    all.push_back({kind, 1, 29, 256, 128, 0, true, false, false, false, 2});
    all.push_back({kind, 1, 14, 150, 83, 0, true, true, false, false, 2});
  }
  all.push_back({CellKind::lstm, 1, 18, 512, 256, 0, true, true, false, false, 1});
  all.push_back({CellKind::lstm, 1, 34, 128, 128, 64, true, true, false, false, 2});
  // The same from zeros, with rows as lanes.
  all.push_back({CellKind::gru, 1, 31, 330, 300, 0, true, false, false, false, 2});
  all.push_back({CellKind::lstm, 1, 32, 400, 400, 0, true, false, false, false, 1});
  // Four rows, or three, that share loads of weights from memory.
  all.push_back({CellKind::lstm, 1, 3, 3, 800, 0, true, true, false, false, 1});
  all.push_back({CellKind::gru, 1, 7, 3, 850, 0, true, true, false, false, 1});
  all.push_back({CellKind::gru, 1, 3, 2600, 300, 0, true, true, false, false, 1});
  // One step, large weights, of bfloat16 too: rows that fill one vector or two of AVX-512 as lanes;
  // too few.
  all.push_back({CellKind::lstm, 1, 16, 470, 390, 0, true, true, false, false, 1});
  all.push_back({CellKind::gru, 1, 27, 540, 400, 0, true, true, false, false, 1});
  all.push_back({CellKind::rnn_relu, 1, 21, 300, 600, 0, true, true, false, false, 1});
  // Few inputs, with AVX-512 in the step, of w_hh that L1 does not hold; and few rows ahead of it.
  for (const CellKind kind : {CellKind::lstm, CellKind::gru, CellKind::rnn_tanh}) {
    all.push_back({kind, 20, 1, 1, 131, 0, true, true, false, true, 1});
    all.push_back({kind, 9, 3, 1, 97, 0, true, false, true, false, 2});
    all.push_back({kind, 6, 4, 11, 33, 0, true, true, false, false, 1});
    all.push_back({kind, 6, 2, 11, 41, 0, true, true, true, true, 1});
  }
  // One row, with AVX-512 the input products made while w_hh is read: of steps that four do not
  // divide, of whole tiles of them and of what no step makes, of a tail, in reverse, by threads.
  for (const CellKind kind : {CellKind::lstm, CellKind::gru}) {
    all.push_back({kind, 19, 1, 90, 131, 0, true, true, false, true, 1});
    all.push_back({kind, 30, 1, 152, 144, 0, true, false, false, false, 1});
    all.push_back({kind, 15, 1, 144, 144, 0, true, true, false, false, 1});  // in place after all
    all.push_back({kind, 18, 1, 120, 227, 0, true, true, true, false, 2});
  }
  all.push_back({CellKind::lstm, 21, 1, 100, 140, 109, false, true, false, false, 1});
  return all;
}

struct Stacked {
  Shape first;
  int layers;
};

// What runs at the same time: one row, few rows, packed, projected, in reverse, several layers on a
// thread, steps that come out uneven. T = 2 does not.
std::vector<Stacked> stacks() {
  std::vector<Stacked> all;
  for (const CellKind kind : {CellKind::lstm, CellKind::gru, CellKind::rnn_tanh}) {
    const int64_t T = cell_traits(kind).gates > 1 ? 97 : 389;
    //             T   B   I   H   P  bias   state  packed reverse threads
    all.push_back({{kind, T, 1, 3, 33, 0, true, true, false, false, 2}, 2});
    all.push_back({{kind, T, 1, 40, 32, 0, true, false, false, false, 3}, 5});
    all.push_back({{kind, T, 5, 7, 24, 0, true, true, true, false, 2}, 3});
    all.push_back({{kind, T, 9, 7, 33, 0, false, true, false, false, 2}, 4});
    all.push_back({{kind, T + 1, 15, 5, 21, 0, true, true, true, false, 2}, 2});
    all.push_back({{kind, T, 2, 33, 40, 0, true, true, true, true, 3}, 4});
    all.push_back({{kind, 2, 7, 33, 40, 0, true, true, false, false, 3}, 3});
  }
  // w_hh in place.
  all.push_back({{CellKind::rnn_tanh, 36, 1, 9, 192, 0, true, true, false, false, 2}, 2});
  // The first layer makes input products while it reads w_hh.
  all.push_back({{CellKind::lstm, 61, 1, 60, 103, 0, true, true, false, false, 2}, 2});
  // Several chunks of the backward pass.
  all.push_back({{CellKind::lstm, 400, 12, 3, 40, 0, true, true, false, false, 2}, 2});
  all.push_back({{CellKind::lstm, 61, 3, 7, 33, 17, true, true, true, false, 2}, 3});
  all.push_back({{CellKind::lstm, 80, 1, 7, 40, 20, true, true, false, false, 3}, 3});
  return all;
}

}  // namespace

// kernels_test [SET]: of one instruction set, or of all that the machine has.
int main(int count, char** arguments) {
  for (const Isa isa : available_isas()) {
    if (count > 1 && isa_name(isa) != std::string(arguments[1])) continue;
    choose_isa(isa_name(isa));
    check_activations<float>(std::string(isa_name(isa)) + " float");
    check_activations<double>(std::string(isa_name(isa)) + " double");
    unsigned seed = 1;
    for (const Shape& shape : shapes()) {
      for (const bool fewer : {false, true}) {
        if (fewer && shape.threads < 2) continue;
        const Threads threads{shape.threads, fewer ? run_threads<true> : run_threads<false>};
        const std::string name = std::string(isa_name(isa)) + " " + shape.name();
        Layer<float> single(shape, ++seed);
        single.forward(false, threads);
        check_forward(single, name + " float, inference");
        single.forward_packed(threads);
        check_forward(single, name + " float, packed before");
        single.forward(true, threads);
        check_forward(single, name + " float, training");
        Layer<double> layer(shape, seed);
        layer.forward(false, threads);
        check_forward(layer, name + " double");
        check_backward(layer, threads, name);
        // The largest weights are a matter of one direction, and take most of the time.
        const bool directions = shape.threads > 1 && shape.I < 400 && shape.H < 600;
        if (directions) {
          check_directions<float>(shape, seed, threads, name + " float");
          check_directions<double>(shape, seed, threads, name + " double");
        }
        const bool one_step = shape.T == 1 && shape.state && shape.P == 0;
        // Packed before is a matter of one step or a few, whatever the team.
        const bool packs = !fewer && shape.P == 0 && shape.T <= 9 && shape.I < 400 && shape.H < 600;
        if (packs) {
          check_packed_backward<float>(shape, seed, threads, name + " float");
          check_packed_backward<double>(shape, seed, threads, name + " double");
        }
        if (one_step) {
          check_weight_gradients<float>(shape, seed, threads, name + " float");
          check_weight_gradients<double>(shape, seed, threads, name + " double");
        }
        if (bfloat16_kernels() == nullptr) continue;
        if (packs) check_packed_backward<bfloat16>(shape, seed, threads, name + " bfloat16");
        if (one_step) check_weight_gradients<bfloat16>(shape, seed, threads, name + " bfloat16");
        Layer<bfloat16> narrow(shape, seed);
        narrow.forward(false, threads);
        check_forward(narrow, name + " bfloat16, inference");
        narrow.forward_packed(threads);
        check_forward(narrow, name + " bfloat16, packed before");
        narrow.forward(true, threads);
        check_forward(narrow, name + " bfloat16, training");
        check_narrow_backward(narrow, threads, name + " bfloat16");
        if (directions) check_directions<bfloat16>(shape, seed, threads, name + " bfloat16");
      }
    }
    for (const auto& [shape, layers] : stacks()) {
      for (const bool fewer : {false, true}) {
        const Threads threads{shape.threads, fewer ? run_threads<true> : run_threads<false>};
        const std::string name = std::string(isa_name(isa)) + " " + shape.name();
        check_layers<float>(shape, layers, ++seed, threads, name + " float");
        check_layers<double>(shape, layers, seed, threads, name + " double");
        if (bfloat16_kernels() != nullptr)
          check_layers<bfloat16>(shape, layers, seed, threads, name + " bfloat16");
      }
    }
  }
  std::printf("%s\n", failures == 0 ? "all kernels agree" : "kernels disagree");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
