// The index of an id map: open addressing with linear probing from an id's hash to its row.
//
// An entry is 0 where free. Otherwise its low bits are the row + 1, as many as the largest row needs, and the bits above
// are of the id's hash, by which most other ids are told apart without a look at them: at ten million rows every look
// is a miss of all caches. `torchrec/ops/collision/reference.py` has the same rules in PyTorch.
#pragma once

#include <cstdint>

namespace rowwise {

// One to one, so that no two ids have the same hash (the finaliser of MurmurHash3, but for its shifts).
inline uint64_t hash_of(int64_t id) {
  uint64_t x = static_cast<uint64_t>(id);
  x = (x ^ (x >> 32)) * 0xff51afd7ed558ccdu;
  x = (x ^ (x >> 29)) * 0xc4ceb9fe1a85ec53u;
  return x ^ (x >> 32);
}

struct Index {
  // `size` entries, a power of two above `rows`; `ids[row]` is the id of each row that is entered.
  Index(const int64_t* ids_of_rows, int64_t num_rows, uint32_t* data, int64_t size)
      : ids(ids_of_rows), rows(num_rows), entries(data), mask(static_cast<uint64_t>(size) - 1) {
    while (int64_t{1} << (64 - shift) < size) --shift;
    while (num_rows >> row_bits) ++row_bits;
    row_mask = (uint32_t{1} << row_bits) - 1;
  }

  uint64_t home(uint64_t hash) const { return hash >> shift; }
  uint64_t next(uint64_t position) const { return (position + 1) & mask; }
  uint32_t tag(uint64_t hash) const { return static_cast<uint32_t>(hash << row_bits); }
  uint32_t entry(int64_t row, uint64_t hash) const { return static_cast<uint32_t>(row + 1) | tag(hash); }
  int64_t row(uint32_t entry) const { return static_cast<int64_t>(entry & row_mask) - 1; }

  // From `*position` on, the row of the first entry that may be the id's; -1 if there is none. An index that somebody
  // has overwritten is no reason to read outside the map, or to go on for ever.
  int64_t probe(uint64_t hash, uint64_t* position) const {
    const uint32_t wanted = tag(hash);
    for (uint64_t probes = 0; probes <= mask; ++probes) {
      const uint32_t entry = entries[*position];
      if (entry == 0) return -1;
      if ((entry & ~row_mask) == wanted && row(entry) < rows && (entry & row_mask) != 0) return row(entry);
      *position = next(*position);
    }
    return -1;
  }

  // From a first candidate on, the row that holds the id; or -1, and where the search has ended.
  int64_t settle(int64_t id, uint64_t hash, int64_t row, uint64_t* position) const {
    while (row >= 0 && ids[row] != id) {
      *position = next(*position);
      row = probe(hash, position);
    }
    return row;
  }

  // Enters a row whose id has none.
  void enter(int64_t row, uint64_t hash) const {
    uint64_t position = home(hash);
    for (uint64_t probes = 0; probes <= mask && entries[position] != 0; ++probes) position = next(position);
    entries[position] = entry(row, hash);
  }

  // Removes the entry of a row, whose id is still in `ids`, and moves up what stands behind it, so that no search ends
  // too early and none passes over graves.
  void remove(int64_t row) const {
    uint64_t hole = home(hash_of(ids[row]));
    for (uint64_t probes = 0; this->row(entries[hole]) != row; ++probes) {
      if (probes > mask) return;
      hole = next(hole);
    }
    uint64_t position = hole;
    for (uint64_t probes = 0; probes < mask; ++probes) {
      position = next(position);
      const int64_t other = this->row(entries[position]);
      if (other < 0 || other >= rows) break;
      const uint64_t wanted = home(hash_of(ids[other]));
      // It may move up to the hole unless its search begins behind it.
      if (((position - wanted) & mask) >= ((position - hole) & mask)) {
        entries[hole] = entries[position];
        hole = position;
      }
    }
    entries[hole] = 0;
  }

  const int64_t* ids;
  int64_t rows;
  uint32_t* entries;
  uint64_t mask;
  int shift = 64, row_bits = 1;
  uint32_t row_mask;
};

}  // namespace rowwise
