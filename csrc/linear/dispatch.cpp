#include "cpu.h"
#include "linear/linear.h"

namespace rowwise {

const LinearKernels& linear_kernels() {
#ifdef ROWWISE_X86
  if (isa() == Isa::avx512) return avx512::kLinear;
  if (isa() == Isa::avx2) return avx2::kLinear;
#endif
  return baseline::kLinear;
}

}  // namespace rowwise
