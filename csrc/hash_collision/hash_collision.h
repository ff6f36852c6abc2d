// Slot maps by multi-probe hashing: an id lies within a few slots of the one that its hash names. See
// torchrec/ops/hash_collision, whose reference says in plain Python what these kernels do.
#pragma once

#include <cstdint>

namespace rowwise {

constexpr int64_t kFree = -1;  // the identity of a slot that no id holds

// How ids find their slots. `bounds` has one entry more than there are buckets here: where each starts, and the end.
struct Probing {
  const int64_t* bounds;
  int64_t here, first, total;  // buckets: how many are here, the first of them, and how many there are in all
  int64_t span;                // ids of a bucket, side by side; 0: a bucket has every total-th id
  int64_t reserved;            // slots at the end of each bucket that no id holds
  int64_t max_probe;
  bool local;                  // identities are what is left of an id within its bucket
  bool fallback;               // an id without a slot of its own gets one that it shares; else -1
};

// A number that many are divided by: a multiplication instead of a division, which takes six times as long.
// Granlund and Montgomery, "Division by Invariant Integers using Multiplication", 1994, figure 4.1.
struct Divider {
  uint64_t by, factor;
  int first, rest;
};

// A bucket, and how many of its slots ids can hold.
struct Bucket {
  int64_t start;
  Divider size;
};

// The same, prepared for many ids.
struct Layout {
  const Bucket* buckets;
  Divider span, total, reserved;
};

struct SlotMap {
  int64_t* identities;
  int32_t* metadata;  // an hour for each slot; none: nothing is ever evicted
};

// A batch, and what there is to know about each id; `scores` comes with metadata. None in `admitted`: all of them.
struct Arrivals {
  const int64_t* ids;
  int64_t count;
  const int32_t* scores;
  const uint8_t* admitted;  // 0: no; a boolean of PyTorch may be any byte
  int32_t threshold;
  bool oldest;  // evict the oldest of a full range, if it is older than the newcomer; else: if it is below the threshold
};

// Ids that had a slot, that were given a free one, and one of another id; that share one; that were not admitted.
struct SlotTotals {
  int64_t held, inserted, evicted, shared, rejected;
};

struct HashCollisionKernels {
  // Of a run of ids, beginning with `begin`.
  void (*find)(const SlotMap& map, const Probing& probing, const Layout& layout, const int64_t* ids, int64_t begin,
               int64_t end, int64_t* slots, SlotTotals* totals);
  // Of the ids whose buckets belong to this part of several. `evicted[i]` becomes the slot that id i took from another,
  // or -1; none: not wanted.
  void (*assign)(const SlotMap& map, const Probing& probing, const Layout& layout, const Arrivals& arrivals,
                 int64_t part, int64_t parts, int64_t* slots, int64_t* evicted, SlotTotals* totals);
};

namespace baseline {
extern const HashCollisionKernels kHashCollision;
}
namespace avx2 {
extern const HashCollisionKernels kHashCollision;
}
namespace avx512 {
extern const HashCollisionKernels kHashCollision;
}

// Whether every slot that these name lies in a map of so many.
bool probing_fits(const Probing& probing, int64_t slots);

void find_slots(const SlotMap& map, const Probing& probing, const int64_t* ids, int64_t count, int64_t* slots,
                int64_t* totals, int threads);

// Returns how many slots changed hands; they stand in `evicted`, in the order of the batch.
int64_t assign_slots(const SlotMap& map, const Probing& probing, const Arrivals& arrivals, int64_t* slots,
                     int64_t* evicted, int64_t* totals, int threads);

}  // namespace rowwise
