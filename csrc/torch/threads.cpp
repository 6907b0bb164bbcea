#include "torch/threads.h"

#include <ATen/Parallel.h>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fused_rnn {
namespace {

void run(int count, void (*body)(void* context, int id, int team), void* context) {
#ifdef _OPENMP
  // The team that really starts may be smaller than asked for: the body is told its size.
#pragma omp parallel num_threads(count)
  body(context, omp_get_thread_num(), omp_get_num_threads());
#else
  (void)count;
  body(context, 0, 1);
#endif
}

}  // namespace

Threads torch_threads() {
#ifdef _OPENMP
  return {at::in_parallel_region() || omp_in_parallel() ? 1 : at::get_num_threads(), run};
#else
  return {1, run};
#endif
}

}  // namespace fused_rnn
