#include "linear/linear.h"

#include <cmath>
#include <limits>

#include "check.h"
#include "numbers.h"

namespace rowwise {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void test(Random& random, int64_t rows, int64_t columns) {
  const size_t count = static_cast<size_t>(rows * columns);
  std::vector<float> grad(count), output(count);
  for (float& x : grad) x = random.number();
  for (float& x : output) x = random.below(20) == 0 ? kNan : random.number();
  for (const LinearKernels* kernels : SUPPORTED(kLinear)) {
    for (int threads = 1; threads <= 3; ++threads) {
      std::vector<float> turned(count, kNan), masked(count, kNan), masked_turned(count, kNan);
      kernels->transpose(output.data(), rows, columns, turned.data(), threads);
      kernels->relu_grad(grad.data(), output.data(), rows, columns, masked.data(), masked_turned.data(), threads);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
          const size_t at = static_cast<size_t>(r * columns + c), at_turned = static_cast<size_t>(c * rows + r);
          CHECK(same(turned[at_turned], output[at]));
          CHECK(masked[at] == (output[at] <= 0 ? 0 : grad[at]));
          CHECK(masked_turned[at_turned] == masked[at]);
        }
      }
    }
  }
}

void test_cross(Random& random, int64_t count) {
  const size_t size = static_cast<size_t>(count);
  std::vector<float> grad(size), input(size), factors(size), before(size);
  for (std::vector<float>* numbers : {&grad, &input, &factors, &before})
    for (float& x : *numbers) x = random.number();
  for (const LinearKernels* kernels : SUPPORTED(kLinear)) {
    for (int way = 0; way < 4; ++way) {
      const bool is_last = way & 2, is_first = way & 1;
      std::vector<float> product(size, kNan), total = is_last ? std::vector<float>(size, kNan) : before;
      const CrossGrad pass{grad.data(), input.data(), factors.data(), product.data(), total.data(), is_last, is_first};
      kernels->cross_grad(pass, count, 1 + way % 3);
      for (size_t i = 0; i < size; ++i) {
        const float arrived = grad[i], own = arrived * factors[i];
        const float first = is_first ? (is_last ? arrived : before[i] + arrived) : before[i];
        CHECK(product[i] == arrived * input[i]);
        CHECK(total[i] == (is_last && !is_first ? own : first + own));
      }
    }
  }
}

}  // namespace

void test_linear() {
  Random random(7);
  for (int i = 0; i < 200; ++i) test(random, random.below(40), random.below(40));
  test(random, 300, 200);  // enough work for several threads
  for (int i = 0; i < 20; ++i) test_cross(random, random.below(100));
  test_cross(random, 100000);
}

}  // namespace rowwise
