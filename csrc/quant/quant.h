// Tables of few bits a number: rows of bytes, of one width. A row of codes begins with its scale and its bias, float16 both;
// the codes follow, the first of a byte in its low bits, and number i is code i x scale + bias. A row of floats is those alone.
// What is behind the last number says nothing.
#pragma once

#include "embedding/embedding.h"

namespace rowwise {

enum class Format : int32_t { f32, f16, bf16, int8, int4, int2 };

constexpr int bits_of(Format format) {
  return format == Format::f32 ? 32 : format == Format::int8 ? 8 : format == Format::int4 ? 4 : format == Format::int2 ? 2 : 16;
}
constexpr bool has_codes(Format format) { return format >= Format::int8; }
constexpr int64_t kHead = 4;  // bytes of scale and bias

constexpr int64_t least_row_bytes(Format format, int64_t dim) {
  return (has_codes(format) ? kHead : 0) + (dim * bits_of(format) + 7) / 8;
}

// Rows of bytes.
struct RowLayout {
  Format format = Format::f32;
  int64_t row_bytes = 0;  // from the begin of one row to that of the next
};

// A matrix of plain numbers.
struct Matrix {
  const void* data = nullptr;
  Float dtype = Float::f32;
  int64_t rows = 0, dim = 0;
};

struct QuantKernels {
  // The look-up of `embedding`, in tables whose weights are rows of bytes; one layout a table.
  Failure (*forward)(const Batch& batch, const RowLayout* layouts, int64_t* out_of_range);

  // Writes all of `rows`. `bounds` has two numbers a row, within which codes are to be exact and outside of which numbers are
  // clipped, or is none: the least and the greatest of the row. Returns the first row that has a number that is not finite
  // or that the format does not hold, -1 if none.
  int64_t (*quantize)(const Matrix& weight, const float* bounds, const RowLayout& layout, uint8_t* rows, int threads);

  // Writes `count` rows of `dim` floats.
  void (*dequantize)(const uint8_t* rows, const RowLayout& layout, int64_t count, int64_t dim, float* weight, int threads);
};

const QuantKernels& quant_kernels();

namespace baseline {
extern const QuantKernels kQuant;
}
namespace avx2 {
extern const QuantKernels kQuant;
}
namespace avx512 {
extern const QuantKernels kQuant;
}

}  // namespace rowwise
