// The interaction family: addresses in. The Python side has checked shapes, dtypes and contiguity.
#include <nanobind/nanobind.h>

#include "address.h"
#include "interaction/interaction.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

Vectors vectors(int64_t dense, int64_t sparse, int64_t samples, int64_t features, int64_t dim, int64_t dtype) {
  return {at<const void>(dense, samples * dim, "dense"), at<const void>(sparse, samples * features * dim, "sparse"), samples, features, dim, static_cast<Float>(dtype)};
}

}  // namespace

void bind_interaction(nb::module_& m) {
  m.def("dot_interaction", [](int64_t dense, int64_t sparse, int64_t samples, int64_t features, int64_t dim,
                              int64_t dtype, int64_t output, int threads) {
    nb::gil_scoped_release release;
    interaction_kernels().forward(vectors(dense, sparse, samples, features, dim, dtype), at<void>(output), threads);
  });
  m.def("dot_interaction_grad", [](int64_t dense, int64_t sparse, int64_t samples, int64_t features, int64_t dim,
                                   int64_t dtype, int64_t grad, int64_t grad_dense, int64_t grad_sparse, int threads) {
    nb::gil_scoped_release release;
    interaction_kernels().backward(vectors(dense, sparse, samples, features, dim, dtype), at<const void>(grad, samples * (dim + features * (features + 1) / 2), "grad"),
                                   at<void>(grad_dense), at<void>(grad_sparse), threads);
  });
}

}  // namespace rowwise
