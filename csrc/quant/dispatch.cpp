#include "cpu.h"
#include "quant/quant.h"

namespace rowwise {

const QuantKernels& quant_kernels() {
#ifdef ROWWISE_X86
  if (isa() == Isa::avx512) return avx512::kQuant;
  if (isa() == Isa::avx2) return avx2::kQuant;
#endif
  return baseline::kQuant;
}

}  // namespace rowwise
