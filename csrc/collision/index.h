// The index of an id map: a hash table from an id to its row, in groups of one cache line.
//
// An entry is 0 where free. Otherwise its low bits are the row + 1, as many as the largest row needs, and the bits above
// are of the id's hash, by which most other ids are told apart without a look at them: at ten million rows every look
// is a miss of all caches. The highest bits of the hash choose the group; where it is full, the next one has room. A
// search thus compares sixteen entries at once, has seldom more than one group to read, and seldom a branch that the
// processor cannot foresee. `torchrec/ops/collision/reference.py` has the same rules in PyTorch.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace rowwise {

constexpr int64_t kGroup = 16;

// One to one, so that no two ids have the same hash (the finaliser of MurmurHash3, but for its shifts).
inline uint64_t hash_of(int64_t id) {
  uint64_t x = static_cast<uint64_t>(id);
  x = (x ^ (x >> 32)) * 0xff51afd7ed558ccdu;
  x = (x ^ (x >> 29)) * 0xc4ceb9fe1a85ec53u;
  return x ^ (x >> 32);
}

// Bit i: whether entry i of a group has these bits under the mask.
inline uint32_t matches(const uint32_t* group, uint32_t mask, uint32_t wanted) {
#if defined(__SSE2__)
  const __m128i masks = _mm_set1_epi32(static_cast<int>(mask)), bits = _mm_set1_epi32(static_cast<int>(wanted));
  const auto equal = [&](int i) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(group) + i);
    return _mm_cmpeq_epi32(_mm_and_si128(entries, masks), bits);
  };
  const __m128i low = _mm_packs_epi32(equal(0), equal(1)), high = _mm_packs_epi32(equal(2), equal(3));
  return static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
#else
  uint32_t found = 0;
  for (int i = 0; i < kGroup; ++i) found |= static_cast<uint32_t>((group[i] & mask) == wanted) << i;
  return found;
#endif
}

// The entries of an index of so many rows: a power of two, of which at most two thirds are used.
inline int64_t index_size(int64_t rows) {
  int64_t size = kGroup;
  while (2 * size < 3 * rows) size *= 2;
  return size;
}

struct Index {
  // `size` entries, a power of two above `rows`; `ids[row]` is the id of each row that is entered.
  Index(const int64_t* ids_of_rows, int64_t num_rows, uint32_t* data, int64_t size)
      : ids(ids_of_rows), rows(num_rows), entries(data), groups(static_cast<uint64_t>(size / kGroup)) {
    while (uint64_t{1} << group_bits < groups) ++group_bits;
    while (num_rows >> row_bits) ++row_bits;
    row_mask = (uint32_t{1} << row_bits) - 1;
  }

  uint64_t home(uint64_t hash) const { return hash >> 32 >> (32 - group_bits); }
  uint64_t next(uint64_t group) const { return (group + 1) & (groups - 1); }
  uint64_t distance(uint64_t from, uint64_t to) const { return (to - from) & (groups - 1); }
  uint32_t* group(uint64_t number) const { return entries + number * kGroup; }

  uint32_t free(const uint32_t* group) const { return matches(group, ~uint32_t{0}, 0); }
  uint32_t similar(const uint32_t* group, uint64_t hash) const { return matches(group, ~row_mask, tag(hash)); }
  uint32_t tag(uint64_t hash) const { return static_cast<uint32_t>(hash << row_bits); }

  // The row of an entry; of one that somebody else has written, -1 rather than a row outside the map.
  int64_t row(uint32_t entry) const {
    const int64_t row = static_cast<int64_t>(entry & row_mask) - 1;
    return row | -static_cast<int64_t>(row >= rows);
  }

  // The row that holds the id, or -1.
  int64_t find(int64_t id, uint64_t hash) const {
    uint64_t number = home(hash);
    for (uint64_t looked = 0; looked < groups; ++looked, number = next(number)) {
      const uint32_t* at = group(number);
      const uint32_t vacant = free(at);
      for (uint32_t left = similar(at, hash) & ~vacant; left != 0; left &= left - 1) {
        const int64_t held = row(at[__builtin_ctz(left)]);
        if (held >= 0 && ids[held] == id) return held;
      }
      if (vacant != 0) break;
    }
    return -1;
  }

  // Enters a row whose id has none.
  void enter(int64_t row, uint64_t hash) const {
    uint64_t number = home(hash);
    for (uint64_t looked = 0; looked < groups; ++looked, number = next(number)) {
      const uint32_t vacant = free(group(number));
      if (vacant == 0) continue;
      group(number)[__builtin_ctz(vacant)] = static_cast<uint32_t>(row + 1) | tag(hash);
      return;
    }
  }

  // Removes the entry of a row, whose id is still in `ids`. If its group was full, an entry that found no room there
  // moves up from behind, so that no search ends too early and none passes over graves.
  void remove(int64_t row) const {
    uint64_t number = home(hash_of(ids[row]));
    uint32_t found = 0;
    for (uint64_t looked = 0; looked < groups; ++looked, number = next(number)) {
      found = matches(group(number), row_mask, static_cast<uint32_t>(row + 1));
      if (found != 0) break;
    }
    if (found == 0) return;
    uint32_t* hole = group(number) + __builtin_ctz(found);
    uint64_t behind = number;
    for (uint64_t looked = 1; looked < groups && free(group(behind)) == 0; ++looked) {
      behind = next(behind);
      for (uint32_t* at = group(behind); at < group(behind) + kGroup; ++at) {
        const int64_t other = this->row(*at);
        if (other < 0 || distance(home(hash_of(ids[other])), behind) < distance(number, behind)) continue;
        *hole = *at;
        hole = at;
        number = behind;
        break;
      }
    }
    *hole = 0;
  }

  const int64_t* ids;
  int64_t rows;
  uint32_t* entries;
  uint64_t groups;
  int group_bits = 0, row_bits = 1;
  uint32_t row_mask;
};

}  // namespace rowwise
