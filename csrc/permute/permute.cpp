#include "permute/permute.h"

#include <atomic>
#include <vector>

#include "jagged/jagged.h"
#include "runs.h"

namespace rowwise {
int64_t permute_lengths(const Column& lengths, const int64_t* strides, const int64_t* sizes, int64_t keys,
                        const int64_t* order, int64_t count) {
  std::vector<int64_t> starts(static_cast<size_t>(keys) + 1), ends(static_cast<size_t>(count) + 1);
  for (int64_t k = 0; k < keys; ++k) starts[k + 1] = starts[k] + strides[k] * lengths.row_bytes;
  for (int64_t i = 0; i < count; ++i) ends[i + 1] = ends[i] + strides[order[i]] * lengths.row_bytes;
  const bool wide = lengths.row_bytes == 8;
  std::atomic<int64_t> wrong{count};  // the first place in the order
  in_ranges(all_threads(), count, count ? ends[count] / count : 0, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t key = order[i];
      const char* const from = lengths.from + starts[key];
      if (!jagged_kernels().lengths_fit({from, wide, strides[key]}, sizes[key])) {
        for (int64_t first = wrong; i < first && !wrong.compare_exchange_weak(first, i);) {
        }
      }
      copy_run({from, lengths.to + ends[i], strides[key] * lengths.row_bytes});  // out of the cache
    }
  });
  return wrong == count ? -1 : order[wrong];
}

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
  in_ranges(all_threads(), rows, output.row_bytes, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      char* to = output.data + r * output.row_bytes;
      for (int64_t i = 0; i < count; ++i) {
        const Piece& piece = pieces[i];
        const Matrix* input = piece.input < 0 ? nullptr : &inputs[piece.input];
        copy_run({input ? input->data + r * input->row_bytes + piece.start_bytes : nullptr, to, piece.bytes});
        to += piece.bytes;
      }
    }
  });
}

}  // namespace rowwise
