// What the machine can do: a plain loop over random rows, and memcpy. Prints bytes a second of each.
// gather TABLES ROWS DIM BATCH LENGTH THREADS
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

float* huge(size_t bytes) {
  const size_t page = size_t{1} << 21;
  void* p = std::aligned_alloc(page, (bytes + page - 1) / page * page);
  madvise(p, bytes, MADV_HUGEPAGE);
  std::memset(p, 1, bytes);
  return static_cast<float*>(p);
}

template <class Body>
double median_seconds(int repetitions, const Body& body) {
  std::vector<double> times;
  for (int i = 0; i < repetitions; ++i) {
    const double start = seconds();
    body();
    times.push_back(seconds() - start);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  const int64_t tables = atoi(argv[1]), rows = atoi(argv[2]), dim = atoi(argv[3]), batch = atoi(argv[4]),
                length = atoi(argv[5]);
  const int threads = atoi(argv[6]);
  std::vector<float*> weights;
  for (int64_t t = 0; t < tables; ++t) weights.push_back(huge(rows * dim * 4));
  std::vector<int64_t> ids(tables * batch * length);
  std::mt19937_64 generator(1);
  for (auto& id : ids) id = static_cast<int64_t>(generator() % rows);
  float* out = huge(batch * tables * dim * 4);
  const int64_t block = 64;
  const double gather = median_seconds(15, [&] {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < tables * (batch / block); ++task) {
      const int64_t t = task / (batch / block), first = task % (batch / block) * block;
      for (int64_t b = first; b < first + block; ++b) {
        float* y = out + (b * tables + t) * dim;
        const int64_t* bag = &ids[(t * batch + b) * length];
        std::memcpy(y, weights[t] + bag[0] * dim, dim * 4);
        for (int64_t i = 1; i < length; ++i) {
          const float* x = weights[t] + bag[i] * dim;
          for (int64_t d = 0; d < dim; ++d) y[d] += x[d];
        }
      }
    }
  });
  const int64_t size = int64_t{256} << 20;
  char *from = reinterpret_cast<char*>(huge(size)), *to = reinterpret_cast<char*>(huge(size));
  const double copy = median_seconds(9, [&] {
#pragma omp parallel for num_threads(threads)
    for (int part = 0; part < threads; ++part) std::memcpy(to + part * (size / threads), from + part * (size / threads), size / threads);
  });
  const double moved = static_cast<double>(tables * batch) * (length + 1) * dim * 4;
  std::printf("%.4g %.4g\n", moved / gather, 2.0 * size / copy);
}
