#include "cpu.h"
#include "embedding/embedding.h"

namespace rowwise {

const EmbeddingKernels& embedding_kernels() {
#ifdef ROWWISE_X86
  if (isa() == Isa::avx512) return avx512::kEmbedding;
  if (isa() == Isa::avx2) return avx2::kEmbedding;
#endif
  return baseline::kEmbedding;
}

}  // namespace rowwise
