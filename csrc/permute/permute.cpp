#include "permute/permute.h"

#include <vector>

#include "runs.h"

namespace rowwise {

void permute_rows(const Column& column, const int64_t* sizes, int64_t keys, const int64_t* order, int64_t count) {
  std::vector<int64_t> starts(static_cast<size_t>(keys) + 1);
  for (int64_t k = 0; k < keys; ++k) starts[k + 1] = starts[k] + sizes[k] * column.row_bytes;
  std::vector<Run> runs(static_cast<size_t>(count));
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t key = order[i], bytes = starts[key + 1] - starts[key];
    runs[i] = {column.from + starts[key], column.to + at, bytes};
    at += bytes;
  }
  copy_runs(runs, at);
}

void regroup(const Matrix* inputs, const Piece* pieces, int64_t count, const Matrix& output, int64_t rows) {
#pragma omp parallel for schedule(static) if (rows * output.row_bytes > kParallelBytes)
  for (int64_t r = 0; r < rows; ++r) {
    char* to = output.data + r * output.row_bytes;
    for (int64_t i = 0; i < count; ++i) {
      const Piece& piece = pieces[i];
      const Matrix* input = piece.input < 0 ? nullptr : &inputs[piece.input];
      copy_run({input ? input->data + r * input->row_bytes + piece.start_bytes : nullptr, to, piece.bytes});
      to += piece.bytes;
    }
  }
}

}  // namespace rowwise
