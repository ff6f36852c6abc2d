// From floats to rows of bytes, and back.
#pragma once

#include "pieces.h"
#include "quant/rows.h"
#include "scratch.h"

namespace rowwise {
namespace ROWWISE_ISA {

struct Bounds {
  float low, high;
};

inline Bounds bounds_of(const float* x, int64_t dim) {
  Bounds found = {x[0], x[0]};
  for (int64_t i = 1; i < dim; ++i) {
    found.low = x[i] < found.low ? x[i] : found.low;
    found.high = x[i] > found.high ? x[i] : found.high;
  }
  return found;
}

inline bool all_finite(const float* x, int64_t dim) {
  bool all = true;
  for (int64_t i = 0; i < dim; ++i) all &= x[i] - x[i] == 0;
  return all;
}

// False if scale or bias are beyond float16.
template <int kBits>
bool write_codes(const float* x, int64_t dim, Bounds bounds, uint8_t* row) {
  constexpr float levels = (1 << kBits) - 1;
  Half head[2];
  from_float(bounds.low + 0.0f, &head[1]);  // no negative zero, whose place among equals is anyone's
  const float bias = to_float(head[1]);
  const float range = bounds.high > bias ? bounds.high - bias : 0.0f;
  from_float(range / levels, &head[0]);
  if (range > 0 && head[0].bits == 0) head[0].bits = 1;
  const float scale = to_float(head[0]);
  if (!(bias - bias == 0) || !(scale - scale == 0)) return false;
  std::memcpy(row, head, sizeof head);
  constexpr int kPerByte = 8 / kBits;
  for (int64_t i = 0; i < dim; i += kPerByte) {
    unsigned byte = 0;
    for (int64_t k = 0; k < kPerByte && i + k < dim; ++k) {
      float code = scale > 0 ? (x[i + k] - bias) / scale : 0.0f;
      code = code < 0 ? 0 : code > levels ? levels : code;
      code = (code + 8388608.0f) - 8388608.0f;  // to the nearest integer, ties to even
      byte |= static_cast<unsigned>(code) << (k * kBits);
    }
    row[kHead + i / kPerByte] = static_cast<uint8_t>(byte);
  }
  return true;
}

template <class W>
bool write_floats(const float* x, int64_t dim, uint8_t* row) {
  bool all = true;
  for (int64_t i = 0; i < dim; ++i) {
    W y;
    from_float(x[i], &y);
    const float back = to_float(y);
    all &= back - back == 0;
    std::memcpy(row + i * static_cast<int64_t>(sizeof y), &y, sizeof y);
  }
  return all;
}

// False for a row that the format does not hold.
inline bool write_row(const float* x, int64_t dim, const float* bounds, Format format, uint8_t* row) {
  if (!all_finite(x, dim)) return false;
  if (format == Format::f32) return write_floats<float>(x, dim, row);
  if (format == Format::f16) return write_floats<Half>(x, dim, row);
  if (format == Format::bf16) return write_floats<Bfloat16>(x, dim, row);
  const Bounds mine = bounds ? Bounds{bounds[0], bounds[1]} : bounds_of(x, dim);
  if (format == Format::int8) return write_codes<8>(x, dim, mine, row);
  if (format == Format::int4) return write_codes<4>(x, dim, mine, row);
  return write_codes<2>(x, dim, mine, row);
}

template <class W>
void read_floats(const void* data, int64_t first, int64_t count, float* x) {
  const W* from = static_cast<const W*>(data) + first;
  for (int64_t i = 0; i < count; ++i) x[i] = to_float(from[i]);
}

inline int64_t quantize(const Matrix& weight, const float* bounds, const RowLayout& layout, uint8_t* rows, int threads) {
  if (weight.rows == 0) return -1;
  const int64_t dim = weight.dim;
  const size_t each = static_cast<size_t>(dim + 16) * sizeof(float);
  Scratch scratch(each * static_cast<size_t>(threads));
  const int64_t size = kPieceBytes / (dim * 4 + 1) + 1, pieces = (weight.rows + size - 1) / size;
  Scratch memory(static_cast<size_t>(pieces) * sizeof(int64_t));
  int64_t* first_bad = reinterpret_cast<int64_t*>(memory.data());
  in_pieces(threads, pieces, [&](int64_t piece, int thread) {
    float* x = reinterpret_cast<float*>(scratch.data() + each * static_cast<size_t>(thread));
    first_bad[piece] = -1;
    for (int64_t r = piece * size; r < weight.rows && r < (piece + 1) * size; ++r) {
      uint8_t* row = rows + r * layout.row_bytes;
      std::memset(row, 0, static_cast<size_t>(layout.row_bytes));
      switch (weight.dtype) {
        case Float::f32: read_floats<float>(weight.data, r * dim, dim, x); break;
        case Float::f16: read_floats<Half>(weight.data, r * dim, dim, x); break;
        case Float::bf16: read_floats<Bfloat16>(weight.data, r * dim, dim, x); break;
      }
      const bool holds = dim == 0 || write_row(x, dim, bounds ? bounds + 2 * r : nullptr, layout.format, row);
      if (!holds && first_bad[piece] < 0) first_bad[piece] = r;
    }
  });
  for (int64_t piece = 0; piece < pieces; ++piece)
    if (first_bad[piece] >= 0) return first_bad[piece];
  return -1;
}

template <class Rows>
void read_row(const uint8_t* from, int64_t dim, float* x) {
  for (int64_t column = 0; column < dim; column += kBlock) {
    const auto row = Rows(column).row(reinterpret_cast<intptr_t>(from));
    const int64_t left = dim - column;
    if (left >= kBlock) {
      row.load(0).store(x + column);
    } else {
      row.load_head(0, static_cast<int>(left)).store_head(x + column, static_cast<int>(left));
    }
  }
}

inline void dequantize(const uint8_t* rows, const RowLayout& layout, int64_t count, int64_t dim, float* weight, int threads) {
  in_ranges(threads, count, dim * 4 + layout.row_bytes, [&](int64_t begin, int64_t end, int) {
    with_reader(layout.format, [&](auto reader) {
      for (int64_t r = begin; r < end; ++r)
        read_row<typename decltype(reader)::type>(rows + r * layout.row_bytes, dim, weight + r * dim);
    });
  });
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
