// The linear family: addresses in. The Python side has checked shapes, dtypes and contiguity.
#include <nanobind/nanobind.h>

#include "address.h"
#include "linear/linear.h"

namespace nb = nanobind;

namespace rowwise {

void bind_linear(nb::module_& m) {
  m.def("transpose", [](int64_t from, int64_t rows, int64_t columns, int64_t turned, int threads) {
    const auto* source = at<const float>(from, rows * columns, "matrix");
    nb::gil_scoped_release release;
    linear_kernels().transpose(source, rows, columns, at<float>(turned), threads);
  });
  m.def("relu_grad", [](int64_t grad, int64_t output, int64_t rows, int64_t columns, int64_t masked, int64_t turned,
                        int threads) {
    const auto* upstream = at<const float>(grad, rows * columns, "grad");
    const auto* above = at<const float>(output, rows * columns, "output");
    nb::gil_scoped_release release;
    linear_kernels().relu_grad(upstream, above, rows, columns, at<float>(masked), at<float>(turned), threads);
  });
  m.def("cross_grad", [](int64_t grad, int64_t input, int64_t factors, int64_t product, int64_t total, int64_t count,
                         bool is_last, bool is_first, int threads) {
    const CrossGrad pass{at<const float>(grad, count, "grads"),
                         at<const float>(input, count, "input"),
                         at<const float>(factors, count, "factors"),
                         at<float>(product),
                         at<float>(total),
                         is_last,
                         is_first};
    nb::gil_scoped_release release;
    linear_kernels().cross_grad(pass, count, threads);
  });
}

}  // namespace rowwise
