// What the gradients of linear maps, and of cross layers over them, need beside matrix products, which PyTorch has.
#pragma once

#include <cstdint>

namespace rowwise {

// The gradient of a cross layer, x' = x + input * factors, of `count` numbers each. From what arrives at x', `grad`, come
// product = grad * input, of the factors, and what is added to `total`, the gradient of the input: grad * factors. In the
// first layer x is the input, and gets grad as well.
struct CrossGrad {
  const float *grad, *input, *factors;
  float *product, *total;
  bool is_last;   // nothing is in `total` yet
  bool is_first;
};

struct LinearKernels {
  // turned[c][r] = from[r][c]
  void (*transpose)(const float* from, int64_t rows, int64_t columns, float* turned, int threads);
  // grad where output is above zero (or not a number), zero elsewhere: as it is and turned, in one pass.
  void (*relu_grad)(const float* grad, const float* output, int64_t rows, int64_t columns, float* masked, float* turned,
                    int threads);
  void (*cross_grad)(const CrossGrad& pass, int64_t count, int threads);
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
