#include <algorithm>
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
#pragma omp parallel for schedule(static) if (bytes > kParallelBytes)
  for (int64_t b = 0; b < bags; ++b) {
    const int64_t first = get(offsets, b);
    body(b, first, get(offsets, b + 1) - first);
  }
}

// Calls body with the integers at their true width.
template <class Body>
auto at_width(const Integers& integers, const Body& body) {
  return integers.wide ? body(static_cast<const int64_t*>(integers.data)) : body(static_cast<const int32_t*>(integers.data));
}

// Copies the rows of the bags of one key; `Row` is what a row is held in, or char for rows of any size.
template <class Row, class Offset, class Sample>
char* take_key(const Offset* offsets, const Sample* samples, int64_t count, const char* rows, int64_t row_bytes,
               char* taken) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = offsets[samples[i]], length = offsets[samples[i] + 1] - first;
    if (sizeof(Row) > 1) {
      for (int64_t j = 0; j < length; ++j) {
        std::memcpy(taken, rows + (first + j) * static_cast<int64_t>(sizeof(Row)), sizeof(Row));
        taken += sizeof(Row);
      }
    } else {
      copy_run({rows + first * row_bytes, taken, length * row_bytes});
      taken += length * row_bytes;
    }
  }
  return taken;
}

}  // namespace

int64_t take_sample_lengths(const Integers& offsets, int64_t keys, const Integers& samples, int64_t num_rows,
                            void* lengths) {
  const int64_t stride = keys ? (offsets.count - 1) / keys : 0;
  return at_width(offsets, [&](const auto* all) {
    return at_width(samples, [&](const auto* chosen) -> int64_t {
      auto* out = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(all)>>*>(lengths);
      for (int64_t i = 0; i < samples.count; ++i) {
        if (chosen[i] < 0 || chosen[i] >= stride) return -1;
      }
      int64_t total = 0;
      bool fits = true;
      for (int64_t k = 0; k < keys; ++k, all += stride, out += samples.count) {
        for (int64_t i = 0; i < samples.count; ++i) {
          const int64_t first = all[chosen[i]], last = all[chosen[i] + 1];
          fits &= 0 <= first && first <= last && last <= num_rows;
          out[i] = static_cast<std::remove_pointer_t<decltype(out)>>(last - first);
          total += last - first;
        }
      }
      return fits ? total : -2;
    });
  });
}

void take_samples(const Integers& offsets, int64_t keys, const Integers& samples, const char* rows, int64_t row_bytes,
                  char* taken) {
  const int64_t stride = keys ? (offsets.count - 1) / keys : 0;
  at_width(offsets, [&](const auto* all) {
    at_width(samples, [&](const auto* chosen) {
      const auto take = row_bytes == 8   ? take_key<int64_t, std::decay_t<decltype(*all)>, std::decay_t<decltype(*chosen)>>
                        : row_bytes == 4 ? take_key<int32_t, std::decay_t<decltype(*all)>, std::decay_t<decltype(*chosen)>>
                                         : take_key<char, std::decay_t<decltype(*all)>, std::decay_t<decltype(*chosen)>>;
      char* at = taken;
      for (int64_t k = 0; k < keys; ++k) at = take(all + k * stride, chosen, samples.count, rows, row_bytes, at);
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
    total += length;
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
