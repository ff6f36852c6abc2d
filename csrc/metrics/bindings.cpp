// The metrics family: addresses in. The Python side has checked shapes, dtypes and contiguity.
#include <nanobind/nanobind.h>

#include "address.h"
#include "metrics/metrics.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

TaskSamples samples_at(int64_t predictions, int64_t labels, int64_t weights, int64_t tasks, int64_t samples) {
  const int64_t count = tasks * samples;
  return {at<const float>(predictions, count, "predictions"), at<const float>(labels, count, "labels"),
          at<const float>(weights), tasks, samples};
}

}  // namespace

void bind_metrics(nb::module_& m) {
  m.def("weighted_sums", [](int64_t predictions, int64_t labels, int64_t weights, int64_t tasks, int64_t samples,
                            int64_t sums, int threads) {
    const TaskSamples given = samples_at(predictions, labels, weights, tasks, samples);
    nb::gil_scoped_release release;
    metric_kernels().weighted_sums(given, at<double>(sums), threads);
  });
  m.def("cross_entropy_sums", [](int64_t predictions, int64_t labels, int64_t weights, int64_t tasks, int64_t samples,
                                 double eta, int64_t sums, int threads) {
    const TaskSamples given = samples_at(predictions, labels, weights, tasks, samples);
    nb::gil_scoped_release release;
    metric_kernels().cross_entropy_sums(given, eta, at<double>(sums), threads);
  });
  m.def("threshold_sums", [](int64_t predictions, int64_t labels, int64_t weights, int64_t tasks, int64_t samples,
                             double threshold, int64_t sums, int threads) {
    const TaskSamples given = samples_at(predictions, labels, weights, tasks, samples);
    nb::gil_scoped_release release;
    metric_kernels().threshold_sums(given, static_cast<float>(threshold), at<double>(sums), threads);
  });
  m.def("roc_areas", [](int64_t predictions, int64_t labels, int64_t weights, int64_t tasks, int64_t samples,
                        int64_t areas, int threads) {
    const TaskSamples given = samples_at(predictions, labels, weights, tasks, samples);
    nb::gil_scoped_release release;
    metric_kernels().roc_areas(given, at<double>(areas), threads);
  });
}

}  // namespace rowwise
