// Copying runs of bytes: all that jagged selections and permutations come down to.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "pieces.h"

namespace rowwise {

struct Run {
  const char* from;  // none: zeros
  char* to;
  int64_t bytes;
};

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
  in_ranges(all_threads(), n, bytes / (n > 0 ? n : 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) copy_run(runs[i]);
  });
}

}  // namespace rowwise
