#include "hash_collision/hash_collision.h"

#include <algorithm>

#include "check.h"

namespace rowwise {
namespace {

using Ids = std::vector<int64_t>;

int64_t random_id(Random& random, int64_t distinct) {
  const int64_t extremes[] = {INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX - 1, INT64_MAX};
  return random.below(10) == 0 ? random.among(extremes) : (random.below(distinct) - distinct / 4) * 1000003;
}

// A map in memory of exactly its size; slots behind its buckets belong to nobody and stay as they are.
struct Case {
  Ids bounds, identities;
  std::vector<int32_t> metadata;
  Probing probing;

  Case(Random& random, int64_t most) {
    const int64_t reserved = random.below(3), buckets = 1 + random.below(5);
    bounds.push_back(random.below(3));
    for (int64_t b = 0; b < buckets; ++b) bounds.push_back(bounds.back() + reserved + 1 + random.below(most));
    identities.assign(static_cast<size_t>(bounds.back() + random.below(3)), kFree);
    metadata.assign(identities.size(), -1);
    const int64_t probes[] = {1, 2, 7, 8, 9, 128, INT64_MAX};
    const int64_t first = random.below(3);
    probing = {bounds.data(), buckets, first, first + buckets + random.below(2), random.coin() ? 0 : 1 + random.below(9),
               reserved, random.among(probes), random.coin(), random.coin()};
    CHECK(probing_fits(probing, static_cast<int64_t>(identities.size())));
  }
};

// Every id that holds a slot is found there, and a batch is assigned the same by one thread as by three.
void test_sequence(Random& random, int64_t most, int64_t batch) {
  Case c(random, most);
  int64_t totals[5] = {};
  for (int step = 0; step < 6; ++step) {
    Ids ids(static_cast<size_t>(random.below(batch + 1)));
    for (auto& id : ids) id = random_id(random, 2 * most + 10);
    std::vector<int32_t> scores(ids.size());
    for (auto& score : scores) score = static_cast<int32_t>(step + random.below(3));
    uint8_t* const admitted = new uint8_t[ids.size()];
    for (size_t i = 0; i < ids.size(); ++i) admitted[i] = random.below(4) != 0;
    const bool timed = random.coin();
    const Arrivals arrivals = {ids.data(), static_cast<int64_t>(ids.size()), timed ? scores.data() : nullptr,
                               random.coin() ? admitted : nullptr, static_cast<int32_t>(step + 1), random.coin()};
    Case other = c;
    other.probing.bounds = other.bounds.data();
    Ids slots(ids.size()), evicted(ids.size()), slots_again(ids.size()), evicted_again(ids.size());
    const auto map_of = [&](Case& x) { return SlotMap{x.identities.data(), timed ? x.metadata.data() : nullptr}; };
    const int64_t before = totals[2];
    const int64_t changed = assign_slots(map_of(c), c.probing, arrivals, slots.data(), evicted.data(), totals, 1);
    int64_t totals_again[5] = {};
    const int64_t again = assign_slots(map_of(other), other.probing, arrivals, slots_again.data(),
                                       evicted_again.data(), totals_again, 3);
    delete[] admitted;
    CHECK(changed == again && changed == totals[2] - before);
    CHECK(slots == slots_again && c.identities == other.identities && c.metadata == other.metadata);
    CHECK(std::equal(evicted.begin(), evicted.begin() + changed, evicted_again.begin()));
    for (int64_t slot = 0; slot < static_cast<int64_t>(c.identities.size()); ++slot) {
      const bool in_bucket = slot >= c.bounds.front() && slot < c.bounds.back();
      CHECK(in_bucket || c.identities[static_cast<size_t>(slot)] == kFree);
    }
    for (const int64_t slot : slots) CHECK(slot >= -1 && slot < c.bounds.back());
    Ids found(ids.size());
    find_slots(map_of(c), c.probing, ids.data(), static_cast<int64_t>(ids.size()), found.data(), totals,
               static_cast<int>(1 + random.below(3)));
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool held = found[i] >= 0 && ids[i] != kFree && c.identities[static_cast<size_t>(found[i])] == ids[i];
      CHECK(!held || c.probing.local || std::count(c.identities.begin(), c.identities.end(), ids[i]) == 1);
    }
  }
}

// Whatever stands in a map, a search stays inside and comes to an end.
void test_damaged(Random& random) {
  Case c(random, 40);
  for (auto& id : c.identities) id = random_id(random, 30);
  for (auto& hour : c.metadata) hour = static_cast<int32_t>(random.below(int64_t{1} << 32) - (int64_t{1} << 31));
  Ids ids(70), slots(70), evicted(70);
  for (auto& id : ids) id = random_id(random, 1000);
  std::vector<int32_t> scores(70, INT32_MAX);
  int64_t totals[5] = {};
  assign_slots({c.identities.data(), c.metadata.data()}, c.probing,
               {ids.data(), 70, scores.data(), nullptr, INT32_MAX, random.coin()}, slots.data(), evicted.data(), totals, 1);
  for (const int64_t slot : slots) CHECK(slot >= -1 && slot < c.bounds.back());
}

void test_misfits() {
  const int64_t bounds[] = {0, 4, 10};
  const Probing good = {bounds, 2, 0, 2, 0, 3, 1, false, true};
  CHECK(probing_fits(good, 10) && !probing_fits(good, 9));
  Probing bad = good;
  bad.reserved = 4;
  CHECK(!probing_fits(bad, 10));
  bad = good, bad.here = 0;
  CHECK(!probing_fits(bad, 10));
  const int64_t below[] = {0, INT64_MIN, 10}, behind[] = {0, 4, INT64_MIN};
  for (const auto* wrong : {below, behind}) {
    bad = good, bad.bounds = wrong;
    CHECK(!probing_fits(bad, 10));
  }
  bad = good, bad.first = INT64_MAX;
  CHECK(!probing_fits(bad, 10));
}

}  // namespace

void test_hash_collision() {
  Random random(6);
  for (int i = 0; i < 400; ++i) test_sequence(random, 1 + random.below(60), 90);
  for (int i = 0; i < 300; ++i) test_damaged(random);
  for (int i = 0; i < 3; ++i) test_sequence(random, 3000, 12000);  // enough for several threads
  test_misfits();
}

}  // namespace rowwise
