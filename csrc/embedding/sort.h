// Stable sort of (row, source) pairs by row.
#pragma once

#include <cstdint>
#include <cstring>

#include "block.h"

namespace rowwise {
namespace ROWWISE_ISA {

// A pair in one number: the key of the row, and behind it the number of the gradient row. `Key` is of 32 bits where both
// fit, as they mostly do, which halves the memory that is sorted.
template <class Key>
struct Entry {
  Key packed;
  static constexpr bool kScaled = false;
  ROWWISE_INLINE float factor() const { return 1; }
  ROWWISE_INLINE void set_factor(float) {}
};
template <class Key>
struct ScaledEntry {
  Key packed;
  float scale;
  static constexpr bool kScaled = true;
  ROWWISE_INLINE float factor() const { return scale; }
  ROWWISE_INLINE void set_factor(float x) { scale = x; }
};

inline int bits_of(int64_t count) {  // that number 0 .. count - 1
  int bits = 1;
  while (bits < 63 && (count - 1) >> bits > 0) ++bits;
  return bits;
}

// Keys are rows, or, where rows may come in any order, rows multiplied by an odd number: neighbours in the sorted entries
// then lie far apart in the table. In order of the rows the processor fetches ahead what lies between those that are used,
// and that costs more than it saves.
struct Packing {
  int source_bits, row_bits;
  uint64_t multiplier = 1, inverse = 1;

  Packing(int64_t rows, int64_t sources, bool in_order) : source_bits(bits_of(sources)), row_bits(bits_of(rows)) {
    if (in_order) return;
    multiplier = 0x9e3779b97f4a7c15ULL;
    inverse = 0xf1de83e19937733dULL;  // modulo 2^64, and so modulo any lower power
  }
  int bits() const { return source_bits + row_bits; }
  uint64_t row_mask() const { return (uint64_t{1} << row_bits) - 1; }

  template <class Key>
  ROWWISE_INLINE Key pack(int64_t row, int64_t source) const {
    const Key key = static_cast<Key>(row) * static_cast<Key>(multiplier) & static_cast<Key>(row_mask());
    return static_cast<Key>(key << source_bits | static_cast<Key>(source));
  }
  template <class Key>
  ROWWISE_INLINE int64_t row(Key packed) const {
    return static_cast<int64_t>((packed >> source_bits) * static_cast<Key>(inverse) & static_cast<Key>(row_mask()));
  }
  template <class Key>
  ROWWISE_INLINE int64_t source(Key packed) const {
    return static_cast<int64_t>(packed & ((Key{1} << source_bits) - 1));
  }
  template <class Key>
  ROWWISE_INLINE bool is_same_row(Key a, Key b) const {
    return (a ^ b) >> source_bits == 0;
  }
};

constexpr int kMaxDigit = 11;  // bits of a radix pass: its counters and write streams stay in the first caches
constexpr int64_t kFewEntries = 48;

// Sorts `entries`, with `spare` as second buffer; returns the one that holds the result. Least significant digit first.
template <class E>
E* sort_by_row(const Packing& packing, E* entries, E* spare, int64_t count) {
  using Key = decltype(entries->packed);
  if (count <= kFewEntries) {
    for (int64_t i = 1; i < count; ++i) {
      const E entry = entries[i];
      const Key key = entry.packed >> packing.source_bits;
      int64_t j = i;
      for (; j > 0 && entries[j - 1].packed >> packing.source_bits > key; --j) entries[j] = entries[j - 1];
      entries[j] = entry;
    }
    return entries;
  }
  const int passes = (packing.row_bits + kMaxDigit - 1) / kMaxDigit;
  const int digit = (packing.row_bits + passes - 1) / passes;
  const Key mask = (Key{1} << digit) - 1;
  int64_t starts[1 << kMaxDigit];
  for (int shift = packing.source_bits; shift < packing.bits(); shift += digit) {
    std::memset(starts, 0, sizeof(int64_t) << digit);
    for (int64_t i = 0; i < count; ++i) ++starts[entries[i].packed >> shift & mask];
    int64_t start = 0;
    for (Key d = 0; d <= mask; ++d) {
      const int64_t next = start + starts[d];
      starts[d] = start;
      start = next;
    }
    for (int64_t i = 0; i < count; ++i) spare[starts[entries[i].packed >> shift & mask]++] = entries[i];
    E* sorted = spare;
    spare = entries;
    entries = sorted;
  }
  return entries;
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
