#include "routing/blocks.h"

#include <cmath>
#include <cstring>

#include "pieces.h"

namespace rowwise {
namespace {

constexpr int64_t kAhead = 2;            // rows
constexpr int64_t kMostFetched = 1024;  // bytes of a row: what is longer is seen coming

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

void copy_row(const CopyBlock& block, int64_t row, int64_t columns, int64_t item, const Divisor& divisor) {
  const char* from = block.from + row * block.from_stride * item;
  char* to = block.to + row * block.to_stride * item;
  if (!block.divides && !block.adds) {
    std::memcpy(to, from, static_cast<size_t>(columns * item));
    return;
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

bool is_flat(const CopyBlock& block) {
  return block.from_stride == block.columns && block.to_stride == block.columns;
}

// Memory of a row that comes soon: rows are too short, and too far apart, for the processor to see it coming.
void fetch_row(const CopyBlock& block, int64_t row, int64_t item) {
  if (row >= block.rows) return;
  const char* from = block.from + row * block.from_stride * item;
  const char* to = block.to + row * block.to_stride * item;
  const int64_t bytes = block.columns * item < kMostFetched ? block.columns * item : kMostFetched;
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(from + i, 0, 3);
    __builtin_prefetch(to + i, 1, 3);
  }
}

// Rows [begin, end) of blocks that have as many.
void copy_rows(const CopyBlock* blocks, int64_t count, int64_t begin, int64_t end, int64_t item, const Divisor& divisor) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t b = 0; b < count; ++b) {
      if (blocks[b].columns == 0) continue;  // it need have no memory
      fetch_row(blocks[b], row + kAhead, item);
      copy_row(blocks[b], row, blocks[b].columns, item, divisor);
    }
  }
}

}  // namespace

void copy_blocks(const CopyBlock* blocks, int64_t count, int64_t item, float divisor) {
  const Divisor by(divisor);
  int64_t bytes = 0;
  for (int64_t b = 0; b < count; ++b) bytes += blocks[b].rows * blocks[b].columns * item;
  // A share of the rows of every block, in turn, and of blocks of as many rows row by row: what is side by side is read
  // and written together. One without a gap on either side is one long row.
  const int threads = bytes > kSmallWork ? all_threads() : 1;
  const int64_t shares = threads > 1 ? bytes / kPieceBytes + 1 : 1;
  in_pieces(threads, shares, [&](int64_t share, int) {
    for (int64_t first = 0, next = 0; first < count; first = next) {
      const CopyBlock& block = blocks[first];
      const int64_t begin = block.rows * share / shares, end = block.rows * (share + 1) / shares;
      const bool alone = is_flat(block);
      for (next = first + 1; !alone && next < count && blocks[next].rows == block.rows && !is_flat(blocks[next]);) ++next;
      if (!alone) {
        copy_rows(blocks + first, next - first, begin, end, item, by);
      } else if (end > begin && block.columns > 0) {
        copy_row(block, begin, (end - begin) * block.columns, item, by);
      }
    }
  });
}

}  // namespace rowwise
