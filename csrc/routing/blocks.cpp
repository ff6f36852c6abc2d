#include "routing/blocks.h"

#include <cmath>
#include <cstring>

#include "pieces.h"

namespace rowwise {
namespace {

// Where a power of two divides, its reciprocal gives the same bits, in a tenth of the time.
struct Divisor {
  explicit Divisor(float value) : value(value), reciprocal(1 / value) {
    int exponent = 0;
    is_power = std::frexp(value, &exponent) == 0.5f;
  }

  float value, reciprocal;
  bool is_power;
};

template <class Scale>
void write_row(const float* from, float* to, int64_t n, bool adds, Scale scale) {
  if (adds) {
    for (int64_t i = 0; i < n; ++i) to[i] += scale(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = scale(from[i]);
  }
}

// Rows [begin, end) of a block; those without a gap on either side are copied as one.
void copy_rows(const CopyBlock& block, int64_t begin, int64_t end, int64_t item, const Divisor& divisor) {
  const bool is_flat = block.from_stride == block.columns && block.to_stride == block.columns;
  const int64_t columns = is_flat ? (end - begin) * block.columns : block.columns;
  if (is_flat && end > begin) end = begin + 1;
  for (int64_t row = begin; row < end; ++row) {
    const char* from = block.from + row * block.from_stride * item;
    char* to = block.to + row * block.to_stride * item;
    if (!block.divides && !block.adds) {
      std::memcpy(to, from, static_cast<size_t>(columns * item));
      continue;
    }
    const float* numbers = reinterpret_cast<const float*>(from);
    float* results = reinterpret_cast<float*>(to);
    if (!block.divides) {
      write_row(numbers, results, columns, true, [](float x) { return x; });
    } else if (divisor.is_power) {
      write_row(numbers, results, columns, block.adds, [f = divisor.reciprocal](float x) { return x * f; });
    } else {
      write_row(numbers, results, columns, block.adds, [d = divisor.value](float x) { return x / d; });
    }
  }
}

}  // namespace

void copy_blocks(const CopyBlock* blocks, int64_t count, int64_t item, float divisor) {
  const Divisor by(divisor);
  int64_t bytes = 0;
  for (int64_t b = 0; b < count; ++b) bytes += blocks[b].rows * blocks[b].columns * item;
  // A share of the rows of every block, in turn: blocks side by side are then read and written while their pages are near.
  const int64_t shares = bytes / (kPieceBytes / 8) + 1;
  in_pieces(bytes > kSmallWork ? all_threads() : 1, shares, [&](int64_t share, int) {
    for (int64_t b = 0; b < count; ++b) {
      if (blocks[b].columns == 0) continue;  // they need have no memory
      copy_rows(blocks[b], blocks[b].rows * share / shares, blocks[b].rows * (share + 1) / shares, item, by);
    }
  });
}

}  // namespace rowwise
