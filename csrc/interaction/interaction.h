// Dot products between the vectors of a sample: one dense vector and `features` sparse ones, of `dim` numbers each.
#pragma once

#include <cstdint>

#include "embedding/embedding.h"  // Float

namespace rowwise {

struct Vectors {
  const void* dense = nullptr;   // samples x dim
  const void* sparse = nullptr;  // samples x features x dim
  int64_t samples = 0, features = 0, dim = 0;
  Float dtype = Float::f32;

  int64_t vectors() const { return features + 1; }
  int64_t pairs() const { return features * (features + 1) / 2; }
  int64_t width() const { return dim + pairs(); }  // numbers a sample has in the output
};

struct InteractionKernels {
  // Row of a sample: the dense vector, then x_i . x_j for all i < j, i before j, where x_0 is the dense vector.
  void (*forward)(const Vectors& vectors, void* output, int threads);
  // From the gradient of the output to those of both inputs.
  void (*backward)(const Vectors& vectors, const void* grad, void* grad_dense, void* grad_sparse, int threads);
};

const InteractionKernels& interaction_kernels();

namespace baseline {
extern const InteractionKernels kInteraction;
}
namespace avx2 {
extern const InteractionKernels kInteraction;
}
namespace avx512 {
extern const InteractionKernels kInteraction;
}

}  // namespace rowwise
