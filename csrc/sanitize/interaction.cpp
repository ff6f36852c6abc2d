#include "interaction/interaction.h"

#include <cmath>

#include "check.h"
#include "numbers.h"

namespace rowwise {
namespace {

// The vectors of a sample, the dense one first, in double.
std::vector<std::vector<double>> vectors_of(const Vectors& v, int64_t sample) {
  std::vector<std::vector<double>> x(static_cast<size_t>(v.vectors()));
  for (int64_t i = 0; i < v.vectors(); ++i) {
    for (int64_t d = 0; d < v.dim; ++d) {
      const char* from = static_cast<const char*>(i == 0 ? v.dense : v.sparse);
      const int64_t at = i == 0 ? sample * v.dim + d : (sample * v.features + i - 1) * v.dim + d;
      x[static_cast<size_t>(i)].push_back(read(v.dtype, from, at));
    }
  }
  return x;
}

// Up to rounding to the stored type, and the order of a sum of terms that have `size` together.
bool close(Float dtype, float found, double expected, double size) {
  const double step = dtype == Float::f32 ? 1e-6 : dtype == Float::f16 ? 1e-3 : 8e-3;
  return std::fabs(found - expected) <= step * (1 + size);
}

void test_forward(const Vectors& v, const std::vector<char>& output) {
  for (int64_t s = 0; s < v.samples; ++s) {
    const auto x = vectors_of(v, s);
    int64_t at = s * v.width();
    for (double value : x[0]) CHECK(read(v.dtype, output.data(), at++) == static_cast<float>(value));
    for (size_t i = 0; i < x.size(); ++i) {
      for (size_t j = i + 1; j < x.size(); ++j, ++at) {
        double dot = 0, size = 0;
        for (size_t d = 0; d < x[i].size(); ++d) {
          dot += x[i][d] * x[j][d];
          size += std::fabs(x[i][d] * x[j][d]);
        }
        CHECK(close(v.dtype, read(v.dtype, output.data(), at), dot, size));
      }
    }
  }
}

void test_backward(const Vectors& v, const std::vector<char>& grad, const std::vector<char>& grad_dense,
                   const std::vector<char>& grad_sparse) {
  for (int64_t s = 0; s < v.samples; ++s) {
    const auto x = vectors_of(v, s);
    std::vector<std::vector<double>> g(x.size(), std::vector<double>(static_cast<size_t>(v.dim))), size = g;
    int64_t at = s * v.width();
    for (double& value : g[0]) value = read(v.dtype, grad.data(), at++);
    for (size_t i = 0; i < x.size(); ++i) {
      for (size_t j = i + 1; j < x.size(); ++j, ++at) {
        const double factor = read(v.dtype, grad.data(), at);
        for (size_t d = 0; d < g[i].size(); ++d) {
          g[i][d] += factor * x[j][d];
          g[j][d] += factor * x[i][d];
          size[i][d] += std::fabs(factor * x[j][d]);
          size[j][d] += std::fabs(factor * x[i][d]);
        }
      }
    }
    for (int64_t i = 0; i < v.vectors(); ++i) {
      for (int64_t d = 0; d < v.dim; ++d) {
        const float found = i == 0 ? read(v.dtype, grad_dense.data(), s * v.dim + d)
                                   : read(v.dtype, grad_sparse.data(), (s * v.features + i - 1) * v.dim + d);
        const size_t row = static_cast<size_t>(i), column = static_cast<size_t>(d);
        CHECK(close(v.dtype, found, g[row][column], std::fabs(g[row][column]) + size[row][column]));
      }
    }
  }
}

// Against plain loops, and to the last bit the same on each instruction set and number of threads.
void test(Random& random, int64_t samples, int64_t features, int64_t dim) {
  Vectors v;
  v.samples = samples;
  v.features = features;
  v.dim = dim;
  v.dtype = random.among(kFloats);
  const std::vector<char> dense = random_numbers(random, v.dtype, samples * dim);
  const std::vector<char> sparse = random_numbers(random, v.dtype, samples * features * dim);
  const std::vector<char> grad = random_numbers(random, v.dtype, samples * v.width());
  v.dense = dense.data();
  v.sparse = sparse.data();
  std::vector<char> first_output, first_dense, first_sparse;
  for (const InteractionKernels* kernels : SUPPORTED(kInteraction)) {
    for (int threads = 1; threads <= 3; ++threads) {
      std::vector<char> output(grad.size(), 1), grad_dense(dense.size(), 1), grad_sparse(sparse.size(), 1);
      kernels->forward(v, output.data(), threads);
      kernels->backward(v, grad.data(), grad_dense.data(), grad_sparse.data(), threads);
      if (first_output.empty()) {
        test_forward(v, output);
        test_backward(v, grad, grad_dense, grad_sparse);
        first_output = output, first_dense = grad_dense, first_sparse = grad_sparse;
      }
      CHECK(output == first_output && grad_dense == first_dense && grad_sparse == first_sparse);
    }
  }
}

}  // namespace

void test_interaction() {
  Random random(4);
  const int64_t dims[] = {1, 3, 8, 15, 16, 17, 64, 65, 130};
  for (int i = 0; i < 300; ++i) test(random, random.below(5), random.below(8), random.among(dims));
  test(random, 500, 9, 33);  // enough work for several threads
}

}  // namespace rowwise
