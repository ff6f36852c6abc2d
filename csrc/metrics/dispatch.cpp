#include "cpu.h"
#include "metrics/metrics.h"

namespace rowwise {

const MetricKernels& metric_kernels() {
#ifdef ROWWISE_X86
  if (isa() == Isa::avx512) return avx512::kMetrics;
  if (isa() == Isa::avx2) return avx2::kMetrics;
#endif
  return baseline::kMetrics;
}

}  // namespace rowwise
