// What the gradients of a linear map need beside matrix products, which PyTorch has: matrices turned over.
#pragma once

#include <cstdint>

namespace rowwise {

struct LinearKernels {
  // turned[c][r] = from[r][c]
  void (*transpose)(const float* from, int64_t rows, int64_t columns, float* turned, int threads);
  // grad where output is above zero (or not a number), zero elsewhere: as it is and turned, in one pass.
  void (*relu_grad)(const float* grad, const float* output, int64_t rows, int64_t columns, float* masked, float* turned,
                    int threads);
};

const LinearKernels& linear_kernels();

namespace baseline {
extern const LinearKernels kLinear;
}
namespace avx2 {
extern const LinearKernels kLinear;
}
namespace avx512 {
extern const LinearKernels kLinear;
}

}  // namespace rowwise
