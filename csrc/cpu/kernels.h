// The contract between the kernels and whoever calls them: raw pointers in, raw pointers out.
// Nothing here or below knows of torch.
//
// Dimensions   T steps, B rows in the longest step, I input size, H hidden size,
//              P projection size (0: none; below H; LSTM only), O = P ? P : H the size of h,
//              G gates of the cell. T, B, I and H are at least 1.
// Layout       every matrix is row-major. The rows of a sequence are ordered by step: step t holds
//              rows offset(t) .. offset(t) + batch(t), N rows in all. Dense input has batch(t) = B;
//              packed input gives batch_sizes, positive, never rising, the first of them B.
// Gates        in torch's order: i f g o (LSTM), r z n (GRU).
// Aliasing     no output overlaps an input or another output, but for what passes between the
//              layers of a stack (`Kernels`).
// Errors       std::bad_alloc for scratch memory; what outputs hold then is undefined. Nothing is
//              checked.
// Null         a pointer said to be optional may be null; others may not (unless their size is 0).
// Types        E is the type of what products read: x, h, the weights, and inside the kernels the
//              deltas. T = sum_t<E> is that of sums, cell states and everything else: the same,
//              but float where E is bfloat16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_rnn {

// As it lies in memory: the upper half of a float.
struct bfloat16 {
  uint16_t bits;
};

template <typename E>
struct SumOf {
  using type = E;
};
template <>
struct SumOf<bfloat16> {
  using type = float;
};
template <typename E>
using sum_t = typename SumOf<E>::type;

enum class CellKind { lstm, gru, rnn_tanh, rnn_relu };

// What a cell needs to know of itself before any kernel runs.
struct CellTraits {
  int gates;       // G: w_ih and w_hh have G * H rows
  int sums;        // blocks of H sums a row has, and of their gradients, the deltas
  int saved;       // blocks of H values a row keeps for the backward pass, beside the cell state
  bool has_state;  // a cell state c beside h
};

constexpr CellTraits cell_traits(CellKind kind) {
  switch (kind) {
    case CellKind::lstm:
      return {4, 4, 4, true};  // i f g o
    case CellKind::gru:
      return {3, 4, 4, false};  // r z n, and W_hn h + b_hn
    case CellKind::rnn_tanh:
    case CellKind::rnn_relu:
      break;
  }
  return {1, 1, 0, false};
}

struct SequenceShape {
  int64_t T, B, I, H, P;
  const int64_t* batch_sizes;  // [T], or null: B at every step
  bool reverse;                // steps run from T - 1 down to 0

  int64_t hidden() const { return P > 0 ? P : H; }
};

constexpr int kCacheLine = 64;  // bytes

// How far apart rows of so many deltas are. An odd number of cache lines: with a power of two, the
// rows of a column of deltas, which the gradients of the weights walk along, would fall on a few
// sets of the cache.
template <typename E>
constexpr int64_t delta_stride(int64_t deltas) {
  constexpr int64_t kLine = kCacheLine / static_cast<int64_t>(sizeof(E));
  return ((deltas + kLine - 1) / kLine | 1) * kLine;
}

template <typename E>
struct LayerWeights {
  using T = sum_t<E>;

  const E* w_ih;  // [G*H, I]
  const E* w_hh;  // [G*H, O]
  const T* b_ih;  // [G*H], optional together with b_hh
  const T* b_hh;  // [G*H]
  const E* w_hr;  // [P, H], null without projection
};

// One layer in one direction.
template <typename E>
struct ForwardArgs {
  using T = sum_t<E>;

  SequenceShape shape;
  LayerWeights<E> weights;
  const E* x;        // [N, I], rows x_stride apart
  int64_t x_stride;  // >= I
  const E* h0;       // [B, O], optional: zeros
  const T* c0;       // [B, H], optional: zeros; not looked at without a cell state
  E* out;            // [N, O], rows out_stride apart: h of every row
  int64_t out_stride;
  E* hn;     // [B, O]: h of each sequence's last step; optional
  T* cn;     // [B, H]: c of each sequence's last step, and the running c of inference; null
             // without a cell state
  T* gates;  // [N, saved, H]: written when training, null otherwise or where saved is 0
  T* cells;  // [N, H]: c of every row, when training a cell with a state; null otherwise
  const std::byte* packed;  // `weights` as Kernels::pack wrote them, which are then not looked at;
                            // optional
};

// The gradients of one layer in one direction. Inputs are those of the forward call; gates and
// cells are what it wrote; biases are not looked at. Each gradient pointer is optional: null is not
// computed.
template <typename E>
struct BackwardArgs {
  using T = sum_t<E>;

  SequenceShape shape;
  LayerWeights<E> weights;
  const E* x;
  int64_t x_stride;
  const E* h0;
  const T* c0;
  const E* out;
  int64_t out_stride;
  const T* gates;
  const T* cells;
  const T* grad_out;  // [N, O], rows grad_out_stride apart (0: all are one), optional: zeros
  int64_t grad_out_stride;
  const T* grad_hn;  // [B, O], optional: zeros
  const T* grad_cn;  // [B, H], optional: zeros

  T* grad_x;  // [N, I], contiguous
  bool add_to_grad_x;
  T* grad_h0;  // [B, O]
  T* grad_c0;  // [B, H]
  // The gradients of the weights, shaped as in LayerWeights.
  T* grad_w_ih;
  T* grad_w_hh;
  T* grad_b_ih;
  T* grad_b_hh;
  T* grad_w_hr;

  const std::byte* packed;  // `weights` as Kernels::pack_backward wrote them, which are then not
                            // looked at; optional
  // Of a single step without projection: its deltas, [B, sums * H], rows delta_stride() apart.
  // Kept here for Kernels::weight_gradients, if not null.
  E* deltas;
};

// How the kernels get threads: the caller's pool runs body(context, id, team) for id in
// 0 .. team - 1 at the same time, with team <= count of its choosing, and returns when all are
// done. At most `limit` are asked for.
struct Threads {
  int limit;
  void (*run)(int count, void (*body)(void* context, int id, int team), void* context);
  bool beside = false;  // others run at the same time

  // For a layer beside others.
  Threads one() const { return {1, run, true}; }
};

template <typename E>
struct Kernels {
  using T = sum_t<E>;

  // A stack of layers in one or two directions, [layers][directions], in the order in which each
  // gives to the next what it begins with: its out, an x, or going backward its grad_x, a grad_out.
  // Layers and directions may run at the same time. Only I may differ, between the first layer and
  // the others. `out` of a layer may be that of the last but one before it, and so may grad_x. Of
  // two directions backward, both or neither have a grad_x, the same, and only the second adds to
  // it.
  void (*forward)(CellKind, const ForwardArgs<E>*, int layers, int directions, const Threads&);
  void (*backward)(CellKind, const BackwardArgs<E>*, int layers, int directions, const Threads&);
  // The gradients of the weights of a layer without projection in one direction, of B rows of
  // however many steps, put together as one of T = 1: added to what is there where `add`. Looked at
  // are the sizes of the shape, x, h0, here not optional, the deltas, as backward kept them, and
  // the gradients of the weights.
  void (*weight_gradients)(CellKind, const BackwardArgs<E>&, bool add, const Threads&);
  // The weights of a layer in one direction as the forward pass reads them, for callers that use
  // them many times: how many bytes that takes, and writing it, to a block aligned to 64 bytes.
  // Only I, H and P of the shape are looked at. Other kernels, of another instruction set or type,
  // read them in another order.
  size_t (*packed_bytes)(CellKind, const SequenceShape&);
  void (*pack)(CellKind, const SequenceShape&, const LayerWeights<E>&, std::byte* to);
  // The same for the backward pass of a layer without projection; with an I of 0, for calls that
  // want no grad_x.
  size_t (*packed_backward_bytes)(CellKind, const SequenceShape&);
  void (*pack_backward)(CellKind, const SequenceShape&, const LayerWeights<E>&, std::byte* to);
  // sigmoid and tanh of n values, for tests of their bounds.
  void (*sigmoid)(const T* x, T* y, int64_t n);
  void (*tanh)(const T* x, T* y, int64_t n);
  // Runs rounds of independent multiply-adds in registers and returns how many floating point
  // operations they were: timed by the caller, the machine's peak.
  double (*operations)(int64_t rounds);
  // Reads n values, a multiple of 256, and returns their sum: timed by the caller, the rate at
  // which the machine reads memory of that size.
  T (*read)(const T* x, int64_t n);
};

}  // namespace fused_rnn
