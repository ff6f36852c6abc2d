// Copying runs of bytes: all that jagged selections and permutations come down to.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace rowwise {

struct Run {
  const char* from;  // none: zeros
  char* to;
  int64_t bytes;
};

// Below this one thread is as fast.
constexpr int64_t kParallelBytes = 1 << 20;

inline void copy_run(const Run& run) {
  if (run.bytes == 0) return;
  if (run.from) {
    std::memcpy(run.to, run.from, static_cast<size_t>(run.bytes));
  } else {
    std::memset(run.to, 0, static_cast<size_t>(run.bytes));
  }
}

inline void copy_runs(const std::vector<Run>& runs, int64_t bytes) {
  const int64_t n = static_cast<int64_t>(runs.size());
#pragma omp parallel for schedule(dynamic, 1 + n / 256) if (bytes > kParallelBytes)
  for (int64_t i = 0; i < n; ++i) copy_run(runs[i]);
}

}  // namespace rowwise
