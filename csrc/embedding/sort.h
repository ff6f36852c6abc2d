// Stable sort of (row, source) pairs by row.
#pragma once

#include <cstdint>
#include <cstring>

#include "block.h"

namespace rowwise {
namespace ROWWISE_ISA {

// `source` numbers the gradient rows of a table. Narrow where both fit, which halves the memory that is sorted.
struct NarrowEntry {
  uint32_t row, source;
};
struct WideEntry {
  uint64_t row, source;
};
struct NarrowScaledEntry {
  uint32_t row, source;
  float scale;
};
struct WideScaledEntry {
  uint64_t row, source;
  float scale;
};

ROWWISE_INLINE float scale_of(const NarrowEntry&) { return 1; }
ROWWISE_INLINE float scale_of(const WideEntry&) { return 1; }
ROWWISE_INLINE float scale_of(const NarrowScaledEntry& e) { return e.scale; }
ROWWISE_INLINE float scale_of(const WideScaledEntry& e) { return e.scale; }

constexpr int kMaxDigit = 11;  // bits of a radix pass: its counters and write streams stay in the first caches
constexpr int64_t kFewEntries = 48;

// Sorts `entries`, with `spare` as second buffer; returns the one that holds the result. Least significant digit first.
template <class Entry>
Entry* sort_by_row(Entry* entries, Entry* spare, int64_t count, uint64_t num_rows) {
  if (count <= kFewEntries) {
    for (int64_t i = 1; i < count; ++i) {
      const Entry entry = entries[i];
      int64_t j = i;
      for (; j > 0 && entries[j - 1].row > entry.row; --j) entries[j] = entries[j - 1];
      entries[j] = entry;
    }
    return entries;
  }
  int bits = 1;
  while (bits < 64 && (num_rows - 1) >> bits) ++bits;
  const int passes = (bits + kMaxDigit - 1) / kMaxDigit;
  const int digit = (bits + passes - 1) / passes;
  const uint64_t mask = (uint64_t{1} << digit) - 1;
  int64_t starts[1 << kMaxDigit];
  for (int shift = 0; shift < bits; shift += digit) {
    std::memset(starts, 0, sizeof(int64_t) << digit);
    for (int64_t i = 0; i < count; ++i) ++starts[(entries[i].row >> shift) & mask];
    int64_t start = 0;
    for (uint64_t d = 0; d <= mask; ++d) {
      const int64_t next = start + starts[d];
      starts[d] = start;
      start = next;
    }
    for (int64_t i = 0; i < count; ++i) spare[starts[(entries[i].row >> shift) & mask]++] = entries[i];
    Entry* sorted = spare;
    spare = entries;
    entries = sorted;
  }
  return entries;
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
