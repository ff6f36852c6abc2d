// Compiled once per instruction set, see csrc/README.md.
#include "linear/linear.h"

#include "block.h"
#include "pieces.h"

namespace rowwise {
namespace ROWWISE_ISA {
namespace {

constexpr int64_t kSide = ROWWISE_LANES;        // of a tile, which registers hold
constexpr int64_t kRows = 256, kColumns = 128;  // a piece: what it reads and writes stays in the second cache

// The first, or the second, halves of two vectors, in turn.
ROWWISE_INLINE Lanes zip_first(const Lanes& a, const Lanes& b) {
#if ROWWISE_LANES == 16
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif ROWWISE_LANES == 8
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}

ROWWISE_INLINE Lanes zip_second(const Lanes& a, const Lanes& b) {
#if ROWWISE_LANES == 16
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif ROWWISE_LANES == 8
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

// Turns a tile over. An element's position is the bits of its row, then those of its column; zipping row i with row
// i + kSide / 2 moves them round by one bit, so after as many rounds as a column has bits, row and column have changed
// places.
ROWWISE_INLINE void turn(Lanes* tile) {
  for (int64_t round = 1; round < kSide; round *= 2) {
    Lanes next[kSide];
    for (int64_t i = 0; i < kSide / 2; ++i) {
      next[2 * i] = zip_first(tile[i], tile[i + kSide / 2]);
      next[2 * i + 1] = zip_second(tile[i], tile[i + kSide / 2]);
    }
    for (int64_t i = 0; i < kSide; ++i) tile[i] = next[i];
  }
}

struct Transpose {
  const float* from;
  int64_t rows, columns;
  float* turned;

  ROWWISE_INLINE Lanes read(int64_t i) const { return load_lanes(from + i); }
  ROWWISE_INLINE float read_one(int64_t i) const { return from[i]; }
};

struct ReluGrad {
  const float *grad, *output;
  int64_t rows, columns;
  float *masked, *turned;

  ROWWISE_INLINE Lanes read(int64_t i) const {
    const Lanes x = load_lanes(output + i) <= 0.0f ? Lanes{} : load_lanes(grad + i);
    store_lanes(masked + i, x);
    return x;
  }
  ROWWISE_INLINE float read_one(int64_t i) const { return masked[i] = output[i] <= 0.0f ? 0.0f : grad[i]; }
};

template <class Pass>
void turn_part(const Pass& p, int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
  for (int64_t c = column; c < column_end; c += kSide) {
    for (int64_t r = row; r < row_end; r += kSide) {
      if (r + kSide <= row_end && c + kSide <= column_end) {
        Lanes tile[kSide];
        for (int64_t i = 0; i < kSide; ++i) tile[i] = p.read((r + i) * p.columns + c);
        turn(tile);
        for (int64_t i = 0; i < kSide; ++i) store_lanes(p.turned + (c + i) * p.rows + r, tile[i]);
      } else {
        for (int64_t i = r; i < row_end && i < r + kSide; ++i) {
          for (int64_t j = c; j < column_end && j < c + kSide; ++j) p.turned[j * p.rows + i] = p.read_one(i * p.columns + j);
        }
      }
    }
  }
}

template <class Pass>
void turn_over(const Pass& p, int threads) {
  const int64_t across = (p.columns + kColumns - 1) / kColumns;
  const bool small = p.rows * p.columns * static_cast<int64_t>(sizeof(float)) < kSmallWork;
  in_pieces(small ? 1 : threads, (p.rows + kRows - 1) / kRows * across, [&](int64_t piece, int) {
    const int64_t row = piece / across * kRows, column = piece % across * kColumns;
    const int64_t row_end = row + kRows < p.rows ? row + kRows : p.rows;
    const int64_t column_end = column + kColumns < p.columns ? column + kColumns : p.columns;
    turn_part(p, row, row_end, column, column_end);
  });
}

void transpose(const float* from, int64_t rows, int64_t columns, float* turned, int threads) {
  turn_over(Transpose{from, rows, columns, turned}, threads);
}

void relu_grad(const float* grad, const float* output, int64_t rows, int64_t columns, float* masked, float* turned,
               int threads) {
  turn_over(ReluGrad{grad, output, rows, columns, masked, turned}, threads);
}

template <bool kLast, bool kFirst>
void cross_range(const CrossGrad& pass, int64_t begin, int64_t end) {
  const float *grad = pass.grad, *input = pass.input, *factors = pass.factors;
  float *__restrict product = pass.product, *__restrict total = pass.total;
  for (int64_t i = begin; i < end; ++i) {
    const float arrived = grad[i], own = arrived * factors[i];
    product[i] = arrived * input[i];
    if (kLast) {
      total[i] = kFirst ? arrived + own : own;
    } else {
      total[i] = (kFirst ? total[i] + arrived : total[i]) + own;
    }
  }
}

void cross_grad(const CrossGrad& pass, int64_t count, int threads) {
  using Range = void (*)(const CrossGrad&, int64_t, int64_t);
  constexpr Range ranges[] = {cross_range<false, false>, cross_range<false, true>, cross_range<true, false>,
                              cross_range<true, true>};
  const Range range = ranges[pass.is_last * 2 + pass.is_first];
  constexpr int64_t bytes = 6 * static_cast<int64_t>(sizeof(float));
  in_ranges(count * bytes < kSmallWork ? 1 : threads, count, bytes,
            [&](int64_t begin, int64_t end, int) { range(pass, begin, end); });
}

}  // namespace

extern const LinearKernels kLinear = {transpose, relu_grad, cross_grad};

}  // namespace ROWWISE_ISA
}  // namespace rowwise
