#include "jagged/jagged.h"

namespace rowwise {
namespace ROWWISE_ISA {
namespace {

// Calls body with the integers at their true width.
template <class Body>
auto at_width(const Integers& integers, const Body& body) {
  return integers.wide ? body(static_cast<const int64_t*>(integers.data)) : body(static_cast<const int32_t*>(integers.data));
}

// The sign bit of `signs` is set if any length is negative.
template <class T>
int64_t sum(const T* lengths, int64_t count, int64_t* signs) {
  int64_t total = 0, seen = 0;
  for (int64_t i = 0; i < count; ++i) {
    total += lengths[i];
    seen |= lengths[i];
  }
  *signs |= seen;
  return total;
}

bool lengths_fit(const Integers& lengths, int64_t total) {
  int64_t signs = 0;
  const int64_t found = at_width(lengths, [&](const auto* p) { return sum(p, lengths.count, &signs); });
  return signs >= 0 && found == total;
}

bool offsets_fit(const Integers& offsets, int64_t total) {
  return at_width(offsets, [&](const auto* p) {
    const int64_t last = offsets.count - 1;
    bool falls = last < 0;
    for (int64_t i = 0; i < last; ++i) falls |= p[i] > p[i + 1];
    return !falls && p[0] == 0 && p[last] == total;
  });
}

template <class T>
int64_t running_sum(const T* lengths, int64_t count, T* offsets) {
  int64_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    offsets[i] = static_cast<T>(at);
    at += lengths[i];
  }
  offsets[count] = static_cast<T>(at);
  return at;
}

int64_t offsets_of(const Integers& lengths, void* offsets) {
  if (lengths.wide) {
    return running_sum(static_cast<const int64_t*>(lengths.data), lengths.count, static_cast<int64_t*>(offsets));
  }
  return running_sum(static_cast<const int32_t*>(lengths.data), lengths.count, static_cast<int32_t*>(offsets));
}

void sum_groups(const Integers& lengths, const int64_t* sizes, int64_t groups, int64_t* sums) {
  at_width(lengths, [&](const auto* p) {
    int64_t signs = 0;
    for (int64_t g = 0; g < groups; p += sizes[g++]) sums[g] = sum(p, sizes[g], &signs);
  });
}

void sum_equal_groups(const Integers& lengths, int64_t size, int64_t groups, int64_t* sums) {
  at_width(lengths, [&](const auto* p) {
    int64_t signs = 0;
    for (int64_t g = 0; g < groups; ++g, p += size) sums[g] = sum(p, size, &signs);
  });
}

}  // namespace

extern const JaggedKernels kJagged = {lengths_fit, offsets_fit, offsets_of, sum_groups, sum_equal_groups};

}  // namespace ROWWISE_ISA
}  // namespace rowwise
