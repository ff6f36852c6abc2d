#include <algorithm>
#include <atomic>
#include <type_traits>
#include <vector>

#include "cpu.h"
#include "jagged/jagged.h"
#include "runs.h"

namespace rowwise {

const JaggedKernels& jagged_kernels() {
#ifdef ROWWISE_X86
  if (isa() == Isa::avx512) return avx512::kJagged;
  if (isa() == Isa::avx2) return avx2::kJagged;
#endif
  return baseline::kJagged;
}

namespace {

int64_t get(const Integers& x, int64_t i) {
  return x.wide ? static_cast<const int64_t*>(x.data)[i] : static_cast<const int32_t*>(x.data)[i];
}

// Calls body(b, first row, number of rows) for each bag, on several threads if there is much to copy.
template <class Body>
void for_bags(const Integers& offsets, int64_t row_bytes, const Body& body) {
  const int64_t bags = offsets.count - 1;
  const int64_t bytes = get(offsets, bags) * row_bytes;
  in_ranges(all_threads(), bags, bytes / std::max<int64_t>(bags, 1), [&](int64_t begin, int64_t end, int) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = get(offsets, b);
      body(b, first, get(offsets, b + 1) - first);
    }
  });
}

// Calls body with the integers at their true width.
template <class Body>
auto at_width(const Integers& integers, const Body& body) {
  return integers.wide ? body(static_cast<const int64_t*>(integers.data)) : body(static_cast<const int32_t*>(integers.data));
}

template <class T>
bool all_ones(const T* lengths, int64_t count) {
  T differ = 0;
  for (int64_t i = 0; i < count; ++i) differ |= lengths[i] ^ 1;
  return differ == 0;
}

template <class T>
int64_t sum(const T* lengths, int64_t count) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += lengths[i];
  return total;
}

// Copies one row; `Row` is what it is held in, or char for rows of any size.
template <class Row>
void copy_row(const char* from, char* to, int64_t row_bytes) {
  std::memcpy(to, from, sizeof(Row) > 1 ? sizeof(Row) : static_cast<size_t>(row_bytes));
}

// Calls body(Row{}) with what holds a row of so many bytes.
template <class Body>
void at_row(int64_t row_bytes, const Body& body) {
  if (row_bytes == 8) return body(int64_t{});
  if (row_bytes == 4) return body(int32_t{});
  body(char{});
}

// Copies the rows of the bags of some samples, of one key. `starts` says where each bag starts; none: each has one row.
template <class Row, class Sample>
void take_key(const int64_t* starts, const Sample* samples, int64_t count, const char* rows, int64_t row_bytes,
               char* to) {
  if (!starts) {
    for (int64_t i = 0; i < count; ++i, to += row_bytes) copy_row<Row>(rows + samples[i] * row_bytes, to, row_bytes);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = starts[samples[i]], last = starts[samples[i] + 1];
    for (int64_t row = first; row < last; ++row, to += row_bytes) copy_row<Row>(rows + row * row_bytes, to, row_bytes);
  }
}

int threads_for(const SampleSelection& x) { return x.keys * x.samples.count < kPieceBytes / 8 ? 1 : all_threads(); }

}  // namespace

int64_t take_sample_lengths(const SampleSelection& x, int64_t num_rows, void* taken) {
  const int64_t stride = x.stride;
  int64_t most;  // every sample takes at most all rows
  if (!jagged_kernels().lengths_fit(x.lengths, num_rows) || __builtin_mul_overflow(num_rows, x.samples.count, &most)) {
    return -2;
  }
  return at_width(x.samples, [&](const auto* samples) -> int64_t {
    for (int64_t i = 0; i < x.samples.count; ++i) {
      if (samples[i] < 0 || samples[i] >= stride) return -1;
    }
    return at_width(x.lengths, [&](const auto* lengths) {
      auto* const out = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(lengths)>>*>(taken);
      std::atomic<int64_t> total{0};
      in_pieces(threads_for(x), x.keys, [&](int64_t k, int) {
        const auto* const of_key = lengths + k * stride;
        const bool ones = all_ones(of_key, stride);
        for (int64_t batch = 0, first = 0; batch < x.batches; first += x.sizes[batch++]) {
          auto* const to = out + first * x.keys + k * x.sizes[batch];
          if (ones) {
            std::fill(to, to + x.sizes[batch], 1);
          } else {
            for (int64_t i = 0; i < x.sizes[batch]; ++i) to[i] = of_key[samples[first + i]];
          }
          total += sum(to, x.sizes[batch]);
        }
      });
      return total.load();
    });
  });
}

void take_sample_rows(const SampleSelection& x, const void* lengths_taken, const char* rows, int64_t row_bytes,
                      char* taken) {
  const int64_t stride = x.stride;
  at_width(x.lengths, [&](const auto* lengths) {
    const auto* const out = static_cast<decltype(lengths)>(lengths_taken);
    // Where the rows of each key start, and where those of each batch and key go.
    std::vector<int64_t> from(static_cast<size_t>(x.keys)), to(static_cast<size_t>(x.keys * x.batches));
    for (int64_t k = 0, at = 0; k < x.keys; at += sum(lengths + k * stride, stride), ++k) from[k] = at;
    for (int64_t batch = 0, first = 0, at = 0; batch < x.batches; first += x.sizes[batch++]) {
      for (int64_t k = 0; k < x.keys; ++k) {
        to[batch * x.keys + k] = at;
        at += sum(out + first * x.keys + k * x.sizes[batch], x.sizes[batch]);
      }
    }
    in_pieces(threads_for(x), x.keys, [&](int64_t k, int) {
      std::vector<int64_t> starts;
      if (!all_ones(lengths + k * stride, stride)) {
        starts.resize(static_cast<size_t>(stride) + 1);
        for (int64_t b = 0; b < stride; ++b) starts[b + 1] = starts[b] + lengths[k * stride + b];
      }
      at_width(x.samples, [&](const auto* samples) {
        at_row(row_bytes, [&](auto row) {
          for (int64_t batch = 0, first = 0; batch < x.batches; first += x.sizes[batch++]) {
            take_key<decltype(row)>(starts.empty() ? nullptr : starts.data(), samples + first, x.sizes[batch],
                                    rows + from[k] * row_bytes, row_bytes,
                                    taken + to[batch * x.keys + k] * row_bytes);
          }
        });
      });
    });
  });
}

int64_t take_lengths(const Integers& lengths, const Integers& bags, void* taken) {
  int64_t total = 0;
  for (int64_t i = 0; i < bags.count; ++i) {
    const int64_t bag = get(bags, i);
    if (bag < 0 || bag >= lengths.count) return -1;
    const int64_t length = get(lengths, bag);
    if (length < 0) return -1;
    if (lengths.wide) {
      static_cast<int64_t*>(taken)[i] = length;
    } else {
      static_cast<int32_t*>(taken)[i] = static_cast<int32_t>(length);
    }
    if (__builtin_add_overflow(total, length, &total)) return -1;
  }
  return total;
}

void take_rows(const Integers& lengths, const Integers& bags, const char* rows, int64_t row_bytes, char* taken) {
  std::vector<int64_t> starts(static_cast<size_t>(lengths.count) + 1);
  for (int64_t b = 0; b < lengths.count; ++b) starts[b + 1] = starts[b] + get(lengths, b);
  std::vector<Run> runs(static_cast<size_t>(bags.count));
  int64_t at = 0;
  for (int64_t i = 0; i < bags.count; ++i) {
    const int64_t bag = get(bags, i), bytes = (starts[bag + 1] - starts[bag]) * row_bytes;
    runs[i] = {rows + starts[bag] * row_bytes, taken + at, bytes};
    at += bytes;
  }
  copy_runs(runs, at);
}

void to_padded(const Integers& offsets, const char* rows, int64_t row_bytes, int64_t width, char* padded) {
  for_bags(offsets, row_bytes, [=](int64_t b, int64_t first, int64_t length) {
    copy_run({rows + first * row_bytes, padded + b * width * row_bytes, std::min(length, width) * row_bytes});
  });
}

void from_padded(const Integers& offsets, const char* padded, int64_t row_bytes, int64_t width, char* rows) {
  for_bags(offsets, row_bytes, [=](int64_t b, int64_t first, int64_t length) {
    const int64_t held = std::min(length, width);
    copy_run({padded + b * width * row_bytes, rows + first * row_bytes, held * row_bytes});
    copy_run({nullptr, rows + (first + held) * row_bytes, (length - held) * row_bytes});
  });
}

}  // namespace rowwise
