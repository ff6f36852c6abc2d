#include "metrics/metrics.h"

#include <cmath>
#include <cstring>

#include "check.h"

namespace rowwise {
namespace {

bool close(double found, double expected) {
  if (std::isnan(expected)) return std::isnan(found);
  return std::fabs(found - expected) <= 1e-12 * (1 + std::fabs(expected));
}

// Every pair of samples by itself.
double area_of(const TaskSamples& s, int64_t task) {
  const float* p = s.predictions + task * s.samples;
  const float* y = s.labels + task * s.samples;
  const float* w = s.weights == nullptr ? nullptr : s.weights + task * s.samples;
  double area = 0, pairs = 0;
  for (int64_t i = 0; i < s.samples; ++i) {
    if (std::isnan(p[i])) return p[i];
    for (int64_t j = 0; j < s.samples; ++j) {
      const double positive = (w == nullptr ? 1.0 : w[i]) * y[i], negative = (w == nullptr ? 1.0 : w[j]) * (1.0 - y[j]);
      pairs += positive * negative;
      area += positive * negative * (p[i] > p[j] ? 1.0 : p[i] == p[j] ? 0.5 : 0.0);
    }
  }
  return pairs == 0 ? 0.5 : area / pairs;
}

struct Found {
  std::vector<double> sums, entropies, sides, areas;
  bool operator==(const Found& other) const {
    const auto same = [](const std::vector<double>& a, const std::vector<double>& b) {
      return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
    };
    return same(sums, other.sums) && same(entropies, other.entropies) && same(sides, other.sides) &&
           same(areas, other.areas);
  }
};

void test_against_loops(const TaskSamples& s, const Found& found) {
  for (int64_t t = 0; t < s.tasks; ++t) {
    double sums[kWeightedSums] = {}, sides[kThresholdSums] = {}, entropy = 0;
    for (int64_t i = t * s.samples; i < (t + 1) * s.samples; ++i) {
      const double p = s.predictions[i], y = s.labels[i], w = s.weights == nullptr ? 1.0 : s.weights[i];
      const double terms[] = {w, w * y, w * p, w * (y - p) * (y - p), w * std::fabs(y - p)};
      for (int64_t k = 0; k < kWeightedSums; ++k) sums[k] += terms[k];
      const double inside = std::isnan(p) ? p : std::fmin(std::fmax(p, 1e-12), 1 - 1e-12);
      entropy -= w * (y * std::log2(inside) + (1 - y) * std::log2(1 - inside));
      const bool chosen = p >= 0.5;
      const double parts[] = {chosen ? w * y : 0, chosen ? w - w * y : 0, chosen ? 0 : w * y, chosen == y ? w : 0};
      for (int64_t k = 0; k < kThresholdSums; ++k) sides[k] += parts[k] + (p + y) * 0.0;
    }
    for (int64_t k = 0; k < kWeightedSums; ++k) CHECK(close(found.sums[static_cast<size_t>(k * s.tasks + t)], sums[k]));
    for (int64_t k = 0; k < kThresholdSums; ++k) CHECK(close(found.sides[static_cast<size_t>(k * s.tasks + t)], sides[k]));
    CHECK(close(found.entropies[static_cast<size_t>(t)], entropy));
    if (s.samples < 200) CHECK(close(found.areas[static_cast<size_t>(t)], area_of(s, t)));
  }
}

// Against plain loops, and to the last bit the same on each instruction set and number of threads.
void test(Random& random, int64_t tasks, int64_t samples) {
  const size_t count = static_cast<size_t>(tasks * samples), rows = static_cast<size_t>(tasks);
  std::vector<float> predictions(count), labels(count), weights(count);
  const bool soft = random.coin(), unknown = random.below(8) == 0;
  const int64_t scores = random.coin() ? 9 : 1000000;
  for (size_t i = 0; i < count; ++i) {
    predictions[i] = static_cast<float>(random.below(scores)) / static_cast<float>(scores - 1);
    if (random.below(9) == 0) predictions[i] = -predictions[i];  // as scores may be, and zeros
    labels[i] = soft ? static_cast<float>(random.below(5)) / 4 : static_cast<float>(random.below(2));
    weights[i] = static_cast<float>(random.below(9)) / 8;
    if (unknown && random.below(20) == 0) predictions[i] = std::nanf("");
  }
  const TaskSamples s{predictions.data(), labels.data(), random.coin() ? weights.data() : nullptr, tasks, samples};
  Found first;
  bool is_first = true;
  for (const MetricKernels* kernels : SUPPORTED(kMetrics)) {
    for (int threads = 1; threads <= 3; ++threads) {
      Found found{std::vector<double>(rows * kWeightedSums), std::vector<double>(rows),
                  std::vector<double>(rows * kThresholdSums), std::vector<double>(rows)};
      kernels->weighted_sums(s, found.sums.data(), threads);
      kernels->cross_entropy_sums(s, 1e-12, found.entropies.data(), threads);
      kernels->threshold_sums(s, 0.5f, found.sides.data(), threads);
      kernels->roc_areas(s, found.areas.data(), threads);
      if (is_first) {
        test_against_loops(s, found);
        first = found;
        is_first = false;
      }
      CHECK(found == first);
    }
  }
}

}  // namespace

void test_metrics() {
  Random random(9);
  for (int i = 0; i < 300; ++i) test(random, random.below(4), random.below(40));
  test(random, 3, 40000);  // enough work for several threads
}

}  // namespace rowwise
