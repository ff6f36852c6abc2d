#include "jagged/jagged.h"

namespace rowwise {
namespace ROWWISE_ISA {
namespace {

// Calls body with the integers at their true width.
template <class Body>
auto at_width(const Integers& integers, const Body& body) {
  return integers.wide ? body(static_cast<const int64_t*>(integers.data)) : body(static_cast<const int32_t*>(integers.data));
}

// Sums that may wrap, exactly; -1 beyond int64.
template <class T>
int64_t exact_sum(const T* lengths, int64_t count) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (__builtin_add_overflow(total, static_cast<int64_t>(lengths[i]), &total)) return -1;
  }
  return total;
}

// The sum of lengths; -1 if one is negative or the sum is 2**63 or more. The loop adds and collects bits, which vectors
// can do; the bits then say whether the sum can have wrapped, since no length is above them.
template <class T>
int64_t sum(const T* lengths, int64_t count) {
  uint64_t total = 0;
  T seen = 0;
  for (int64_t i = 0; i < count; ++i) {
    total += static_cast<uint64_t>(lengths[i]);
    seen |= lengths[i];
  }
  int64_t bound;
  if (seen < 0) return -1;
  if (__builtin_mul_overflow(static_cast<int64_t>(seen), count, &bound)) return exact_sum(lengths, count);
  return static_cast<int64_t>(total);
}

bool lengths_fit(const Integers& lengths, int64_t total) {
  return total >= 0 && at_width(lengths, [&](const auto* p) { return sum(p, lengths.count); }) == total;
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
bool running_sum(const T* lengths, int64_t count, T* offsets) {
  T at = 0;
  bool wraps = false;
  for (int64_t i = 0; i < count; ++i) {
    offsets[i] = at;
    wraps |= __builtin_add_overflow(at, lengths[i], &at);
  }
  offsets[count] = at;
  return !wraps;
}

bool offsets_of(const Integers& lengths, void* offsets) {
  if (lengths.wide) {
    return running_sum(static_cast<const int64_t*>(lengths.data), lengths.count, static_cast<int64_t*>(offsets));
  }
  return running_sum(static_cast<const int32_t*>(lengths.data), lengths.count, static_cast<int32_t*>(offsets));
}

bool sum_groups(const Integers& lengths, const int64_t* sizes, int64_t groups, int64_t* sums) {
  return at_width(lengths, [&](const auto* p) {
    bool sound = true;
    for (int64_t g = 0; g < groups; p += sizes[g++]) {
      sums[g] = sum(p, sizes[g]);
      sound &= sums[g] >= 0;
    }
    return sound;
  });
}

bool sum_equal_groups(const Integers& lengths, int64_t size, int64_t groups, int64_t* sums) {
  return at_width(lengths, [&](const auto* p) {
    bool sound = true;
    for (int64_t g = 0; g < groups; ++g, p += size) {
      sums[g] = sum(p, size);
      sound &= sums[g] >= 0;
    }
    return sound;
  });
}

}  // namespace

extern const JaggedKernels kJagged = {lengths_fit, offsets_fit, offsets_of, sum_groups, sum_equal_groups};

}  // namespace ROWWISE_ISA
}  // namespace rowwise
