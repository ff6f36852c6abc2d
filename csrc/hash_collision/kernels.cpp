#include "hash_collision/hash_collision.h"

namespace rowwise {
namespace ROWWISE_ISA {
namespace {

constexpr int64_t kBlock = 32;  // ids under way at a time: their slots are fetched while those before are searched
constexpr int64_t kStride = 8;  // slots looked at together: a cache line

uint64_t rotate(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

uint64_t finish(uint64_t x) {
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdu;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53u;
  return x ^ (x >> 33);
}

// MurmurHash3 (x64, 128 bits) of the id and eight zeros with seed 0, its halves combined.
uint64_t hash_of(uint64_t id) {
  uint64_t low = rotate(id * 0x87c37b91114253d5u, 31) * 0x4cf5ad432745937fu;
  low = rotate(low, 27) * 5 + 0x52dce729u;
  uint64_t high = (low * 5 + 0x38495ab5u) ^ 16;
  low = (low ^ 16) + high;
  high += low;
  low = finish(low);
  high = finish(high);
  low += high;
  return low ^ (high + low);
}

// Ids on their way to their slots.
struct Block {
  int64_t count = 0;
  int64_t at[kBlock], keys[kBlock], homes[kBlock], starts[kBlock], sizes[kBlock], shared[kBlock];
  uint64_t hashes[kBlock];

  // Takes an id whose bucket is here.
  void add(int64_t position, int64_t key, const Probing& probing, int64_t bucket) {
    at[count] = position;
    keys[count] = key;
    starts[count] = probing.bounds[bucket];
    sizes[count] = probing.bounds[bucket + 1] - probing.bounds[bucket] - probing.reserved;
    ++count;
  }

  void place(const SlotMap& map, const Probing& probing) {
    for (int64_t i = 0; i < kBlock; ++i) hashes[i] = hash_of(static_cast<uint64_t>(keys[i]));  // vectorised: all of it
    for (int64_t i = 0; i < count; ++i) {
      homes[i] = static_cast<int64_t>(hashes[i] % static_cast<uint64_t>(sizes[i]));
      __builtin_prefetch(map.identities + starts[i] + homes[i]);
      if (map.metadata) __builtin_prefetch(map.metadata + starts[i] + homes[i]);
    }
    for (int64_t i = 0; i < count; ++i) {
      const auto reserved = static_cast<uint64_t>(probing.reserved);
      shared[i] = !probing.fallback  ? -1
                  : reserved == 0    ? starts[i] + homes[i]
                                     : starts[i] + sizes[i] + static_cast<int64_t>(hashes[i] % reserved);
    }
  }
};

// Where an id belongs: its bucket, from the first one here, and what stands for it there.
struct Belonging {
  int64_t bucket, key;
};

Belonging belonging(const Probing& probing, int64_t id) {
  int64_t bucket, rest;
  if (probing.span > 0) {
    bucket = id < 0 ? -1 : id / probing.span;
    rest = id - bucket * probing.span;
  } else {
    rest = id / probing.total;
    bucket = id - rest * probing.total;
    if (bucket < 0) {  // rounded down, also below zero
      bucket += probing.total;
      --rest;
    }
  }
  return {bucket - probing.first, probing.local ? rest : id};
}

// The first of some slots that the key holds, or that is free; their number if there is none.
int64_t scan(const int64_t* identities, int64_t count, int64_t key) {
  int64_t i = 0;
  for (; i + kStride <= count; i += kStride) {
    uint32_t found = 0;
    for (int64_t j = 0; j < kStride; ++j) {
      found |= static_cast<uint32_t>((identities[i + j] == key) | (identities[i + j] == kFree)) << j;
    }
    if (found != 0) return i + __builtin_ctz(found);
  }
  for (; i < count; ++i) {
    if (identities[i] == key || identities[i] == kFree) return i;
  }
  return count;
}

// The slots that an id may lie in: up to the end of its bucket, and on from its start.
struct Range {
  int64_t first, count, rest_first, rest;

  Range(int64_t start, int64_t size, int64_t home, int64_t max_probe) : first(start + home), rest_first(start) {
    const int64_t all = max_probe < size ? max_probe : size;
    count = all < size - home ? all : size - home;
    rest = all - count;
  }

  // A slot never becomes free again, so a free one is where the search for an id ends. -1: there is none.
  int64_t find(const int64_t* identities, int64_t key) const {
    int64_t found = scan(identities + first, count, key);
    if (found < count) return first + found;
    found = scan(identities + rest_first, rest, key);
    return found < rest ? rest_first + found : -1;
  }

  // The slot with the lowest number; of several the first in the order of the search.
  int64_t oldest(const int32_t* metadata) const {
    int32_t least = INT32_MAX;
    for (int64_t i = 0; i < count; ++i) least = metadata[first + i] < least ? metadata[first + i] : least;
    for (int64_t i = 0; i < rest; ++i) least = metadata[rest_first + i] < least ? metadata[rest_first + i] : least;
    for (int64_t i = 0; i < count; ++i) {
      if (metadata[first + i] == least) return first + i;
    }
    for (int64_t i = 0; i < rest; ++i) {
      if (metadata[rest_first + i] == least) return rest_first + i;
    }
    return first;
  }
};

void search(const SlotMap& map, const Probing& probing, const Block& block, int64_t* slots, SlotTotals* totals) {
  for (int64_t i = 0; i < block.count; ++i) {
    int64_t slot = -1;
    if (block.keys[i] != kFree) {
      const Range range(block.starts[i], block.sizes[i], block.homes[i], probing.max_probe);
      slot = range.find(map.identities, block.keys[i]);
      if (slot >= 0 && map.identities[slot] != block.keys[i]) slot = -1;
    }
    ++(slot < 0 ? totals->shared : totals->held);
    slots[block.at[i]] = slot < 0 ? block.shared[i] : slot;
  }
}

void settle(const SlotMap& map, const Probing& probing, const Arrivals& arrivals, const Block& block, int64_t* slots,
            int64_t* evicted, SlotTotals* totals) {
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t at = block.at[i], key = block.keys[i];
    const int32_t score = arrivals.scores ? arrivals.scores[at] : 0;
    int64_t slot = -1;
    bool taken = false;
    if (key != kFree) {
      const Range range(block.starts[i], block.sizes[i], block.homes[i], probing.max_probe);
      slot = range.find(map.identities, key);
      if (slot >= 0 && map.identities[slot] == key) {
        ++totals->held;
        if (map.metadata && map.metadata[slot] < score) map.metadata[slot] = score;
        slots[at] = slot;
        continue;
      }
      if (arrivals.admitted && !arrivals.admitted[at]) {
        ++totals->rejected;
        slot = -1;
      } else if (slot >= 0) {
        ++totals->inserted;
      } else if (map.metadata) {
        slot = range.oldest(map.metadata);
        taken = map.metadata[slot] < (arrivals.oldest ? score : arrivals.threshold);
        if (!taken) slot = -1;
      }
    }
    if (slot < 0) {
      ++totals->shared;
      slots[at] = block.shared[i];
      continue;
    }
    map.identities[slot] = key;
    if (map.metadata) map.metadata[slot] = score;
    if (taken) {
      ++totals->evicted;
      evicted[at] = slot;
    }
    slots[at] = slot;
  }
}

// Calls done(block) for the ids whose buckets are here and wanted, in order; the next block is fetched meanwhile.
template <class Wanted, class Done>
void in_blocks(const SlotMap& map, const Probing& probing, const int64_t* ids, int64_t begin, int64_t end,
               int64_t* slots, const Wanted& wanted, const Done& done) {
  Block blocks[2];
  for (auto& block : blocks) {
    for (int64_t i = 0; i < kBlock; ++i) block.keys[i] = 0;
  }
  int64_t turn = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Belonging belongs = belonging(probing, ids[i]);
    if (!wanted(belongs.bucket)) continue;
    if (belongs.bucket < 0 || belongs.bucket >= probing.here) {
      slots[i] = -1;
      continue;
    }
    Block& block = blocks[turn];
    block.add(i, belongs.key, probing, belongs.bucket);
    if (block.count < kBlock) continue;
    block.place(map, probing);
    turn ^= 1;
    done(blocks[turn]);
    blocks[turn].count = 0;
  }
  blocks[turn].place(map, probing);
  done(blocks[turn ^ 1]);
  done(blocks[turn]);
}

void find(const SlotMap& map, const Probing& probing, const int64_t* ids, int64_t begin, int64_t end, int64_t* slots,
          SlotTotals* totals) {
  in_blocks(
      map, probing, ids, begin, end, slots, [](int64_t) { return true; },
      [&](const Block& block) { search(map, probing, block, slots, totals); });
}

void assign(const SlotMap& map, const Probing& probing, const Arrivals& arrivals, int64_t part, int64_t parts,
            int64_t* slots, int64_t* evicted, SlotTotals* totals) {
  const auto wanted = [=](int64_t bucket) {
    return parts == 1 || (bucket % parts == part) || (part == 0 && bucket < 0);
  };
  in_blocks(map, probing, arrivals.ids, 0, arrivals.count, slots, wanted, [&](const Block& block) {
    settle(map, probing, arrivals, block, slots, evicted, totals);
  });
}

}  // namespace

extern const HashCollisionKernels kHashCollision = {&find, &assign};

}  // namespace ROWWISE_ISA
}  // namespace rowwise
