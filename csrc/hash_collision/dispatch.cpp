#include <algorithm>
#include <mutex>

#include "cpu.h"
#include "hash_collision/hash_collision.h"
#include "pieces.h"
#include "scratch.h"

namespace rowwise {
namespace {

constexpr int64_t kPieceIds = 1 << 12;

const HashCollisionKernels& hash_collision_kernels() {
#ifdef ROWWISE_X86
  if (isa() == Isa::avx512) return avx512::kHashCollision;
  if (isa() == Isa::avx2) return avx2::kHashCollision;
#endif
  return baseline::kHashCollision;
}

// Calls body(part, totals of this part) for each of several parts.
template <class Body>
void in_parts(int threads, int64_t parts, int64_t* totals, const Body& body) {
  std::mutex mutex;
  in_pieces(threads, parts, [&](int64_t part, int) {
    SlotTotals found = {};
    body(part, &found);
    const std::lock_guard<std::mutex> lock(mutex);
    totals[0] += found.held;
    totals[1] += found.inserted;
    totals[2] += found.evicted;
    totals[3] += found.shared;
    totals[4] += found.rejected;
  });
}

Divider dividing(int64_t number) {
  const auto by = static_cast<uint64_t>(std::max<int64_t>(number, 1));
  int bits = 0;  // the least whose power of two is not below the number, which is below 2^63
  while ((uint64_t{1} << bits) < by) ++bits;
  const unsigned __int128 above = (uint64_t{1} << bits) - by;
  return {by, static_cast<uint64_t>((above << 64) / by + 1), std::min(bits, 1), std::max(bits - 1, 0)};
}

// Memory for what each bucket needs.
class Prepared {
 public:
  explicit Prepared(const Probing& probing)
      : memory_((static_cast<size_t>(probing.here)) * sizeof(Bucket)), span_(dividing(probing.span)),
        total_(dividing(probing.total)), reserved_(dividing(probing.reserved)) {
    Bucket* buckets = reinterpret_cast<Bucket*>(memory_.data());
    Divider size = dividing(1);
    for (int64_t b = 0; b < probing.here; ++b) {
      const int64_t slots = probing.bounds[b + 1] - probing.bounds[b] - probing.reserved;
      if (static_cast<uint64_t>(slots) != size.by) size = dividing(slots);  // most have the same
      buckets[b] = {probing.bounds[b], size};
    }
  }

  Layout layout() const { return {reinterpret_cast<const Bucket*>(memory_.data()), span_, total_, reserved_}; }

 private:
  Scratch memory_;
  Divider span_, total_, reserved_;
};

}  // namespace

bool probing_fits(const Probing& probing, int64_t slots) {
  const Probing& p = probing;
  if (p.here < 1 || p.first < 0 || p.total < p.here || p.first > p.total - p.here) return false;
  if (p.span < 0 || p.reserved < 0 || p.max_probe < 1) return false;
  for (int64_t b = 0; b < p.here; ++b) {
    const int64_t start = p.bounds[b], end = p.bounds[b + 1];
    if (start < 0 || end < start || end > slots || end - start <= p.reserved) return false;
  }
  return true;
}

void find_slots(const SlotMap& map, const Probing& probing, const int64_t* ids, int64_t count, int64_t* slots,
                int64_t* totals, int threads) {
  const int64_t parts = (count + kPieceIds - 1) / kPieceIds;
  const Prepared prepared(probing);
  const Layout layout = prepared.layout();
  in_parts(threads, parts, totals, [&](int64_t part, SlotTotals* found) {
    hash_collision_kernels().find(map, probing, layout, ids, count * part / parts, count * (part + 1) / parts, slots,
                                  found);
  });
}

int64_t assign_slots(const SlotMap& map, const Probing& probing, const Arrivals& arrivals, int64_t* slots,
                     int64_t* evicted, int64_t* totals, int threads) {
  // Ids of different buckets never meet, so parts of the buckets, each in the order of the batch, are as good as all.
  const int64_t count = arrivals.count;
  const int64_t parts = count < kPieceIds ? 1 : std::min<int64_t>(threads, probing.here);
  const int64_t before = totals[2];
  const Prepared prepared(probing);
  const Layout layout = prepared.layout();
  if (map.metadata) std::fill(evicted, evicted + count, -1);
  in_parts(threads, parts, totals, [&](int64_t part, SlotTotals* found) {
    hash_collision_kernels().assign(map, probing, layout, arrivals, part, parts, slots, evicted, found);
  });
  if (totals[2] == before) return 0;
  return std::remove(evicted, evicted + count, -1) - evicted;
}

}  // namespace rowwise
