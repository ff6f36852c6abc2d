// What metrics ask of the samples of some tasks, a row each: sums in double, and areas under curves.
#pragma once

#include <cstdint>

namespace rowwise {

struct TaskSamples {
  const float* predictions = nullptr;  // tasks x samples
  const float* labels = nullptr;       // alike
  const float* weights = nullptr;      // alike; none: 1 each
  int64_t tasks = 0, samples = 0;
};

constexpr int64_t kWeightedSums = 5;   // of weight, and of weight times label, prediction, squared and absolute error
constexpr int64_t kThresholdSums = 4;  // of weight times true positive, false positive, false negative, right

struct MetricKernels {
  // kWeightedSums x tasks.
  void (*weighted_sums)(const TaskSamples& samples, double* sums, int threads);
  // Cross-entropy in bits, of predictions that are taken to lie between eta and 1 - eta; one a task.
  void (*cross_entropy_sums)(const TaskSamples& samples, double eta, double* sums, int threads);
  // kThresholdSums x tasks. NaN for a task with a prediction or a label that is not finite.
  void (*threshold_sums)(const TaskSamples& samples, float threshold, double* sums, int threads);
  // Area under the ROC curve, one a task: a tie counts half; 0.5 without either class, NaN with a NaN.
  void (*roc_areas)(const TaskSamples& samples, double* areas, int threads);
};

const MetricKernels& metric_kernels();

namespace baseline {
extern const MetricKernels kMetrics;
}
namespace avx2 {
extern const MetricKernels kMetrics;
}
namespace avx512 {
extern const MetricKernels kMetrics;
}

}  // namespace rowwise
