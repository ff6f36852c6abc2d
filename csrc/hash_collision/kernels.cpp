#include "hash_collision/hash_collision.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace rowwise {
namespace ROWWISE_ISA {
namespace {

constexpr int64_t kBlock = 32;  // ids under way at a time: their slots are fetched while those before are searched
constexpr int64_t kStride = 8;  // slots looked at together: a cache line

uint64_t rotate(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

uint64_t quotient(uint64_t x, const Divider& divider) {
  const auto high = static_cast<uint64_t>((static_cast<unsigned __int128>(divider.factor) * x) >> 64);
  return (high + ((x - high) >> divider.first)) >> divider.rest;
}

uint64_t remainder(uint64_t x, const Divider& divider) { return x - quotient(x, divider) * divider.by; }

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
  const Bucket* buckets[kBlock];
  uint64_t hashes[kBlock];

  // Takes an id whose bucket is here.
  void add(int64_t position, int64_t key, const Bucket* bucket) {
    at[count] = position;
    keys[count] = key;
    buckets[count] = bucket;
    ++count;
  }

  void place(const SlotMap& map, const Probing& probing, const Layout& layout) {
    for (int64_t i = 0; i < kBlock; ++i) hashes[i] = hash_of(static_cast<uint64_t>(keys[i]));  // vectorised: all of it
    for (int64_t i = 0; i < count; ++i) {
      starts[i] = buckets[i]->start;
      sizes[i] = static_cast<int64_t>(buckets[i]->size.by);
      homes[i] = static_cast<int64_t>(remainder(hashes[i], buckets[i]->size));
      __builtin_prefetch(map.identities + starts[i] + homes[i]);
      if (map.metadata) __builtin_prefetch(map.metadata + starts[i] + homes[i]);
    }
    for (int64_t i = 0; i < count; ++i) {
      shared[i] = !probing.fallback       ? -1
                  : probing.reserved == 0 ? starts[i] + homes[i]
                                          : starts[i] + sizes[i] +
                                                static_cast<int64_t>(remainder(hashes[i], layout.reserved));
    }
  }
};

// Where an id belongs: its bucket, from the first one here, and what stands for it there.
struct Belonging {
  int64_t bucket, key;
};

Belonging belonging(const Probing& probing, const Layout& layout, int64_t id) {
  int64_t bucket, rest;
  if (probing.span > 0) {
    bucket = id < 0 ? -1 : static_cast<int64_t>(quotient(static_cast<uint64_t>(id), layout.span));
    rest = id - bucket * probing.span;
  } else if (probing.total == 1) {
    bucket = 0;
    rest = id;
  } else {  // rounded down, also below zero: the complement of an id below is one above
    const int64_t sign = id >> 63;
    rest = static_cast<int64_t>(quotient(static_cast<uint64_t>(id ^ sign), layout.total)) ^ sign;
    bucket = static_cast<int64_t>(static_cast<uint64_t>(id) - static_cast<uint64_t>(rest) * layout.total.by);
  }
  return {bucket - probing.first, probing.local ? rest : id};
}

// Bit i: whether the key holds slot i of eight, or nobody does.
uint32_t ends_at(const int64_t* identities, int64_t key) {
#if defined(__AVX512F__)
  const __m512i slots = _mm512_loadu_si512(identities);
  return static_cast<uint32_t>(_mm512_cmpeq_epi64_mask(slots, _mm512_set1_epi64(key))) |
         static_cast<uint32_t>(_mm512_cmpeq_epi64_mask(slots, _mm512_set1_epi64(kFree)));
#elif defined(__AVX2__)
  const __m256i keys = _mm256_set1_epi64x(key), free = _mm256_set1_epi64x(kFree);
  const auto half = [&](const int64_t* four) {
    const __m256i slots = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(four));
    const __m256i found = _mm256_or_si256(_mm256_cmpeq_epi64(slots, keys), _mm256_cmpeq_epi64(slots, free));
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(found)));
  };
  return half(identities) | half(identities + 4) << 4;
#else
  uint32_t found = 0;
  for (int64_t i = 0; i < kStride; ++i) {
    found |= static_cast<uint32_t>((identities[i] == key) | (identities[i] == kFree)) << i;
  }
  return found;
#endif
}

// The first of some slots that the key holds, or that is free; their number if there is none.
int64_t scan(const int64_t* identities, int64_t count, int64_t key) {
  int64_t i = 0;
  for (; i + kStride <= count; i += kStride) {
    const uint32_t found = ends_at(identities + i, key);
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
void in_blocks(const SlotMap& map, const Probing& probing, const Layout& layout, const int64_t* ids, int64_t begin,
               int64_t end, int64_t* slots, const Wanted& wanted, const Done& done) {
  Block blocks[2];
  for (auto& block : blocks) {
    for (int64_t i = 0; i < kBlock; ++i) block.keys[i] = 0;
  }
  int64_t turn = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Belonging belongs = belonging(probing, layout, ids[i]);
    if (!wanted(belongs.bucket)) continue;
    if (belongs.bucket < 0 || belongs.bucket >= probing.here) {
      slots[i] = -1;
      continue;
    }
    Block& block = blocks[turn];
    block.add(i, belongs.key, layout.buckets + belongs.bucket);
    if (block.count < kBlock) continue;
    block.place(map, probing, layout);
    turn ^= 1;
    done(blocks[turn]);
    blocks[turn].count = 0;
  }
  blocks[turn].place(map, probing, layout);
  done(blocks[turn ^ 1]);
  done(blocks[turn]);
}

void find(const SlotMap& map, const Probing& probing, const Layout& layout, const int64_t* ids, int64_t begin,
          int64_t end, int64_t* slots, SlotTotals* totals) {
  in_blocks(
      map, probing, layout, ids, begin, end, slots, [](int64_t) { return true; },
      [&](const Block& block) { search(map, probing, block, slots, totals); });
}

void assign(const SlotMap& map, const Probing& probing, const Layout& layout, const Arrivals& arrivals, int64_t part,
            int64_t parts, int64_t* slots, int64_t* evicted, SlotTotals* totals) {
  const auto wanted = [=](int64_t bucket) {
    return parts == 1 || (bucket % parts == part) || (part == 0 && bucket < 0);
  };
  in_blocks(map, probing, layout, arrivals.ids, 0, arrivals.count, slots, wanted, [&](const Block& block) {
    settle(map, probing, arrivals, block, slots, evicted, totals);
  });
}

}  // namespace

extern const HashCollisionKernels kHashCollision = {&find, &assign};

}  // namespace ROWWISE_ISA
}  // namespace rowwise
