// The kernels of one instruction set, gathered into the table that dispatch.cpp chooses from.
// Included by isa_<set>_<type>.cpp inside the set's namespace and target, after simd/<set>.h. The
// order of the headers is the order of their needs; a `//` keeps it from being sorted.

#include "cpu/simd/vec.h"
//
#include "cpu/simd/math.h"
#include "cpu/simd/operand.h"
//
#include "cpu/simd/transpose.h"
//
#include "cpu/panels.h"
#include "cpu/tile.h"
//
#include "cpu/cells.h"
#include "cpu/product.h"
#include "cpu/steps.h"
#include "cpu/strips.h"
//
#include "cpu/split.h"
//
#include "cpu/finite.h"
//
#include "cpu/tail.h"
//
#include "cpu/calls_ahead.h"
//
#include "cpu/packed_weights.h"
//
#include "cpu/dot_products.h"
#include "cpu/rows_as_lanes.h"
//
#include "cpu/forward_rules.h"
//
#include "cpu/forward_plan.h"
//
#include "cpu/forward_step.h"
//
#include "cpu/in_place.h"
#include "cpu/input_products.h"
//
#include "cpu/calls_in_turn.h"
#include "cpu/meanwhile.h"
//
#include "cpu/ahead.h"
//
#include "cpu/forward.h"
//
#include "cpu/weight_products.h"
//
#include "cpu/backward.h"
//
#include "cpu/layers.h"

// run.operator()<Cell>() with the cell of this kind.
template <typename Run>
auto with_cell(CellKind kind, const Run& run) {
  switch (kind) {
    case CellKind::lstm:
      return run.template operator()<Lstm>();
    case CellKind::gru:
      return run.template operator()<Gru>();
    case CellKind::rnn_tanh:
      return run.template operator()<Rnn<CellKind::rnn_tanh>>();
    case CellKind::rnn_relu:
      break;
  }
  return run.template operator()<Rnn<CellKind::rnn_relu>>();
}

template <typename E>
void forward(CellKind kind, const ForwardArgs<E>* args, int layers, int directions,
             const Threads& threads) {
  with_cell(kind,
            [&]<typename Cell>() { forward_layers<Cell>(args, layers, directions, threads); });
}

template <typename E>
void backward(CellKind kind, const BackwardArgs<E>* args, int layers, int directions,
              const Threads& threads) {
  with_cell(kind,
            [&]<typename Cell>() { backward_layers<Cell>(args, layers, directions, threads); });
}

template <typename E>
void weight_gradients(CellKind kind, const BackwardArgs<E>& args, bool add,
                      const Threads& threads) {
  with_cell(kind, [&]<typename Cell>() { weights_of_deltas<Cell>(args, add, threads); });
}

template <typename E>
size_t packed_bytes(CellKind kind, const SequenceShape& shape) {
  return with_cell(kind,
                   [&]<typename Cell>() { return packed_bytes<PackedWeights<Cell, E>>(shape); });
}

template <typename E>
void pack(CellKind kind, const SequenceShape& shape, const LayerWeights<E>& from, std::byte* to) {
  with_cell(kind, [&]<typename Cell>() { pack_weights<Cell>(shape, from, to); });
}

template <typename E>
size_t packed_backward_bytes(CellKind kind, const SequenceShape& shape) {
  return with_cell(kind,
                   [&]<typename Cell>() { return packed_bytes<PackedColumns<Cell, E>>(shape); });
}

template <typename E>
void pack_backward(CellKind kind, const SequenceShape& shape, const LayerWeights<E>& from,
                   std::byte* to) {
  with_cell(kind, [&]<typename Cell>() { pack_columns_of_weights<Cell>(shape, from, to); });
}

template <typename T>
void sigmoid_of(const T* x, T* y, int64_t n) {
  for (int64_t i = 0; i < n; i += Vec<T>::kLanes) {
    const int left = lanes_of<T>(i / Vec<T>::kLanes, n);
    sigmoid(Vec<T>::load(x + i, left)).store(y + i, left);
  }
}

template <typename T>
void tanh_of(const T* x, T* y, int64_t n) {
  for (int64_t i = 0; i < n; i += Vec<T>::kLanes) {
    const int left = lanes_of<T>(i / Vec<T>::kLanes, n);
    tanh(Vec<T>::load(x + i, left)).store(y + i, left);
  }
}

template <typename E>
double operations(int64_t rounds) {
  using Op = Operand<E>;
  using V = Vec<sum_t<E>>;
  constexpr int kSums = 12;
  V sum[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) sum[i] = V::zero();
  alignas(64) const E zeros[Op::kElements] = {};
  typename Op::V a = Op::load(zeros);
  asm volatile("" : FUSED_RNN_VECTOR_OPERAND(a.v));  // They could be anything.
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      sum[i] = multiply_add(a, a, sum[i]);
      // Each sum is a result of its own: nothing may be folded or dropped.
      asm volatile("" : FUSED_RNN_VECTOR_OPERAND(sum[i].v));
    }
  }
  return 2.0 * kSums * Op::kElements * static_cast<double>(rounds);
}

template <typename T>
T read_all(const T* x, int64_t n) {
  constexpr int kSums = 8;
  Vec<T> sum[kSums];
#pragma GCC unroll 8
  for (int i = 0; i < kSums; ++i) sum[i] = Vec<T>::zero();
  for (int64_t k = 0; k < n; k += kSums * Vec<T>::kLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) sum[i] = sum[i] + Vec<T>::load(x + k + i * Vec<T>::kLanes);
  }
  T total = 0;
  for (int i = 0; i < kSums; ++i) {
    T lanes[Vec<T>::kLanes];
    sum[i].store(lanes);
    for (const T lane : lanes) total += lane;
  }
  return total;
}

template <typename E>
const Kernels<E>& kernel_table() {
  using T = sum_t<E>;
  static constexpr Kernels<E> kTable{forward<E>,       backward<E>,   weight_gradients<E>,
                                     packed_bytes<E>,  pack<E>,       packed_backward_bytes<E>,
                                     pack_backward<E>, sigmoid_of<T>, tanh_of<T>,
                                     operations<E>,    read_all<T>};
  return kTable;
}
