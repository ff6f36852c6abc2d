#include "cpu.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#ifdef ROWWISE_X86
#include <cpuid.h>
#endif

namespace rowwise {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

#ifdef ROWWISE_X86
bool has_f16c() {  // not every Clang knows it by name
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

Isa best_supported() {
#ifdef ROWWISE_X86
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                  has_f16c();
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return v4 ? Isa::avx512 : v3 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

Isa choose() {
  const Isa best = best_supported();
  const char* wanted = std::getenv("ROWWISE_ISA");
  if (wanted == nullptr) return best;
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(wanted, kNames[i]) == 0) return std::min(static_cast<Isa>(i), best);
  }
  throw std::invalid_argument(std::string("ROWWISE_ISA should be 'baseline', 'avx2' or 'avx512'. Received '") + wanted +
                              "'.");
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name() { return kNames[static_cast<int>(isa())]; }

}  // namespace rowwise
