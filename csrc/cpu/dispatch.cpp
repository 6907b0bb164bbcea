#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fused_rnn {
namespace {

bool machine_has(Isa isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (isa) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
  return false;
#else
  return isa == Isa::baseline;
#endif
}

bool machine_has_matrix_unit() {
#if defined(__x86_64__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned kAmxTile = 1u << 24;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAmxTile) != 0;
#else
  return false;
#endif
}

Isa named(const std::string& name, const std::string& origin) {
  std::string known;
  for (const Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    known += known.empty() ? "" : ", ";
    known += isa_name(isa);
  }
  throw std::invalid_argument(origin + ": expected an instruction set that this machine can run (" +
                              known + "), got '" + name + "'");
}

constexpr const char* kVariable = "FUSED_RNN_CPU_ISA";

ActiveIsa detect() {
  const char* forced = std::getenv(kVariable);
  if (forced != nullptr && *forced != '\0')
    return {named(forced, kVariable), std::string("forced by ") + kVariable};
  return {available_isas().back(), "the widest that the machine has"};
}

struct State {
  std::mutex mutex;
  ActiveIsa active = detect();
  std::atomic<int> isa{static_cast<int>(active.isa)};
};

State& state() {
  static State instance;
  return instance;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return "baseline";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "";
}

std::vector<Isa> built_isas() {
#if defined(__x86_64__)
  return {Isa::baseline, Isa::avx2, Isa::avx512};
#else
  return {Isa::baseline};
#endif
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (const Isa isa : built_isas()) {
    if (machine_has(isa)) isas.push_back(isa);
  }
  return isas;
}

ActiveIsa active_isa() {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  return s.active;
}

void choose_isa(const std::string& name) {
  State& s = state();
  const ActiveIsa chosen =
      name.empty() ? detect() : ActiveIsa{named(name, "set_isa"), "chosen by set_isa"};
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.active = chosen;
  s.isa.store(static_cast<int>(chosen.isa), std::memory_order_relaxed);
}

template <typename T>
const Kernels<T>& kernels() {
  switch (static_cast<Isa>(state().isa.load(std::memory_order_relaxed))) {
#if defined(__x86_64__)
    case Isa::avx512:
      return avx512::kernel_table<T>();
    case Isa::avx2:
      return avx2::kernel_table<T>();
#endif
    default:
      return baseline::kernel_table<T>();
  }
}

const Kernels<bfloat16>* bfloat16_kernels() {
#if defined(__x86_64__)
  static const bool machine_has_them = __builtin_cpu_supports("avx512bf16");
  const int isa = state().isa.load(std::memory_order_relaxed);
  return machine_has_them && isa == static_cast<int>(Isa::avx512)
             ? &avx512_bf16::kernel_table<bfloat16>()
             : nullptr;
#else
  return nullptr;
#endif
}

const Kernels<bfloat16>* fast_bfloat16_kernels() {
  static const bool slow = machine_has_matrix_unit();
  return slow ? nullptr : bfloat16_kernels();
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace fused_rnn
