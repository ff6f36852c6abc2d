// Permutations of keys.
#pragma once

#include <cstdint>

namespace rowwise {

// Rows of several keys one after another, in and out.
struct Column {
  const char* from;
  char* to;
  int64_t row_bytes;
};

// Writes the keys `order[0] .. order[count - 1]` one after another; `sizes` are the rows of each of the `keys` keys at
// hand. The keys in `order` are below `keys`.
void permute_rows(const Column& column, const int64_t* sizes, int64_t keys, const int64_t* order, int64_t count);

// The same for lengths, int64 or int32, of which key k has `strides[k]`. Returns the first key taken whose lengths are
// negative or do not sum to `sizes[k]`, else -1: tensors may have changed since somebody summed them.
int64_t permute_lengths(const Column& lengths, const int64_t* strides, const int64_t* sizes, int64_t keys,
                        const int64_t* order, int64_t count);

// A piece of every row of one tensor. Input -1: zeros.
struct Piece {
  int64_t input, start_bytes, bytes;
};
struct Matrix {
  char* data;
  int64_t row_bytes;
};

// Fills each row of `output` with the same row's pieces, side by side.
void regroup(const Matrix* inputs, const Piece* pieces, int64_t count, const Matrix& output, int64_t rows);

}  // namespace rowwise
