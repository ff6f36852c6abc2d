#include "cpu.h"
#include "interaction/interaction.h"

namespace rowwise {

const InteractionKernels& interaction_kernels() {
#ifdef ROWWISE_X86
  if (isa() == Isa::avx512) return avx512::kInteraction;
  if (isa() == Isa::avx2) return avx2::kInteraction;
#endif
  return baseline::kInteraction;
}

}  // namespace rowwise
