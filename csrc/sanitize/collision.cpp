#include "collision/collision.h"

#include <algorithm>
#include <map>
#include <utility>

#include "check.h"

namespace rowwise {
namespace {

// Many ids that come again, the extremes, and ids that share a group of a small index.
int64_t random_id(Random& random, int64_t distinct) {
  const int64_t extremes[] = {INT64_MIN, INT64_MIN + 1, -1, 0, 1, INT64_MAX - 1, INT64_MAX};
  return random.below(10) == 0 ? random.among(extremes) : random.below(distinct) * 1000003;
}

// A map and a history in memory of exactly their size, and beside them the same in ordered maps.
struct Case {
  Case(int64_t rows, int64_t room, int threads_used)
      : ids(static_cast<size_t>(rows)), occupied(new uint8_t[static_cast<size_t>(rows)]()),
        entries(static_cast<size_t>(index_size(rows))), counts(ids.size()), last(ids.size()),
        history_ids(static_cast<size_t>(room)), history_counts(history_ids.size()), history_last(history_ids.size()),
        history_entries(static_cast<size_t>(index_size(room))), threads(threads_used) {}
  ~Case() { delete[] occupied; }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  int64_t rows() const { return static_cast<int64_t>(ids.size()); }
  int64_t room() const { return static_cast<int64_t>(history_ids.size()); }
  Index index() { return {ids.data(), rows(), entries.data(), static_cast<int64_t>(entries.size())}; }
  Map map() { return {index(), ids.data(), occupied}; }
  History history() {
    const Index remembered = {history_ids.data(), room(), history_entries.data(),
                              static_cast<int64_t>(history_entries.size())};
    return {remembered, history_ids.data(), history_counts.data(), history_last.data(), &used};
  }

  void check() {
    std::vector<int64_t> known;
    for (const auto& [id, row] : row_of) {
      known.push_back(id);
      CHECK(occupied[row] && ids[static_cast<size_t>(row)] == id);
    }
    std::vector<int64_t> found(known.size());
    find_ids(index(), known.data(), static_cast<int64_t>(known.size()), -1, found.data(), threads);
    for (size_t i = 0; i < known.size(); ++i) CHECK(found[i] == row_of[known[i]]);
    const auto entered = std::count_if(entries.begin(), entries.end(), [](uint32_t entry) { return entry != 0; });
    CHECK(entered == static_cast<int64_t>(row_of.size()));
    CHECK(std::count(occupied, occupied + rows(), uint8_t{1}) == static_cast<int64_t>(row_of.size()));
    CHECK(used == static_cast<int64_t>(candidates.size()));
    for (size_t i = 0; i < candidates.size(); ++i) {
      CHECK(history_ids[i] == candidates[i].first && history_counts[i] == candidates[i].second);
    }
  }

  std::vector<int64_t> ids;
  uint8_t* occupied;
  std::vector<uint32_t> entries;
  std::vector<int64_t> counts, last, history_ids, history_counts, history_last;
  std::vector<uint32_t> history_entries;
  int64_t used = 0, totals[3] = {};
  int threads;
  std::map<int64_t, int64_t> row_of;
  std::vector<std::pair<int64_t, int64_t>> candidates;
};

void count(Random& random, Case& c, int64_t size, int64_t now) {
  std::vector<int64_t> batch(static_cast<size_t>(size)), rows(batch.size());
  for (auto& id : batch) id = random_id(random, 2 * c.rows() + c.room());
  std::vector<int64_t> expected = c.counts;
  std::map<int64_t, size_t> position;
  for (size_t i = 0; i < c.candidates.size(); ++i) position[c.candidates[i].first] = i;
  int64_t forgotten = 0;
  for (const int64_t id : batch) {
    const auto row = c.row_of.find(id);
    if (row != c.row_of.end()) {
      ++expected[static_cast<size_t>(row->second)];
    } else if (position.count(id)) {
      ++c.candidates[position[id]].second;
    } else if (static_cast<int64_t>(c.candidates.size()) < c.room()) {
      position[id] = c.candidates.size();
      c.candidates.emplace_back(id, 1);
    } else {
      ++forgotten;
    }
  }
  const int64_t missing = random.coin() ? -1 : c.rows(), before = c.totals[2];
  const bool counted = random.below(4) != 0;
  count_ids(c.index(), {counted ? c.counts.data() : nullptr, random.coin() ? c.last.data() : nullptr}, c.history(),
            batch.data(), size, now, missing, rows.data(), c.totals, c.threads);
  CHECK(!counted || c.counts == expected);
  CHECK(c.totals[2] - before == forgotten);
  for (size_t i = 0; i < batch.size(); ++i) {
    CHECK(rows[i] == (c.row_of.count(batch[i]) ? c.row_of[batch[i]] : missing));
  }
}

template <class Score>
void replace(Random& random, Case& c, bool floating) {
  std::vector<Score> scores(c.ids.size()), offered(c.candidates.size());
  const Score sizes[] = {Score(3), Score(40), Score(5000000)};
  const int64_t size = static_cast<int64_t>(random.among(sizes));
  for (auto& score : scores) score = static_cast<Score>(random.below(2 * size) - size);
  for (auto& score : offered) score = static_cast<Score>(random.below(2 * size) - size);
  struct Competitor {
    Score score;
    int64_t kind, place;  // 0: of a row, 1: a candidate
  };
  std::vector<Competitor> order;
  for (int64_t row = 0; row < c.rows(); ++row) {
    if (c.occupied[row]) order.push_back({scores[static_cast<size_t>(row)], 0, row});
  }
  for (size_t i = 0; i < offered.size(); ++i) order.push_back({offered[i], 1, static_cast<int64_t>(i)});
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.score > b.score; });
  std::vector<int64_t> lost, won;
  for (size_t i = 0; i < order.size(); ++i) {
    const bool stays = static_cast<int64_t>(i) < c.rows();
    if (!stays && order[i].kind == 0) lost.push_back(order[i].place);
    if (stays && order[i].kind == 1) won.push_back(order[i].place);
  }
  std::sort(lost.begin(), lost.end());
  std::sort(won.begin(), won.end());
  std::vector<int64_t> expected;
  for (int64_t row = 0; row < c.rows() && expected.size() + lost.size() < won.size(); ++row) {
    if (!c.occupied[row]) expected.push_back(row);
  }
  expected.insert(expected.end(), lost.begin(), lost.end());
  std::vector<int64_t> evicted;
  for (const int64_t row : lost) evicted.push_back(c.ids[static_cast<size_t>(row)]);

  const size_t room = std::min(offered.size(), c.ids.size());
  std::vector<int64_t> rows(room), chosen(room), gone(room), names;
  for (const auto& candidate : c.candidates) names.push_back(candidate.first);
  std::vector<int64_t> batch(static_cast<size_t>(random.below(3000)));
  for (auto& id : batch) {
    id = random_id(random, 2 * c.rows());
    if (!names.empty() && random.coin()) id = names[static_cast<size_t>(random.below(static_cast<int64_t>(names.size())))];
  }
  std::vector<int64_t> found(batch.size()), again(batch.size());
  const int64_t asked = static_cast<int64_t>(batch.size()), missing = random.coin() ? -1 : random.below(c.rows() + 1);
  find_ids(c.index(), batch.data(), asked, missing, again.data(), c.threads);
  Replacement result = {rows.data(), chosen.data(), gone.data(), 0, 0};
  replace_ids(c.map(), {scores.data(), offered.data(), floating}, names.data(), static_cast<int64_t>(names.size()),
              &result, c.threads);
  find_ids(c.index(), batch.data(), asked, missing, found.data(), c.threads);
  find_again(c.map(), batch.data(), asked, missing, again.data(), c.threads);
  CHECK(again == found);
  std::vector<int64_t> brought(names.size()), kept = c.counts;
  for (auto& n : brought) n = random.below(100);
  move_counts(result, {brought.data(), nullptr}, {c.counts.data(), nullptr});
  for (size_t i = 0; i < static_cast<size_t>(result.num_rows); ++i) {
    kept[static_cast<size_t>(rows[i])] = brought[static_cast<size_t>(chosen[i])];
  }
  CHECK(c.counts == kept);
  rows.resize(static_cast<size_t>(result.num_rows));
  chosen.resize(rows.size());
  gone.resize(static_cast<size_t>(result.num_evicted));
  CHECK(rows == expected && chosen == won && gone == evicted);
  for (const int64_t id : gone) c.row_of.erase(id);
  for (size_t i = 0; i < rows.size(); ++i) c.row_of[names[static_cast<size_t>(chosen[i])]] = rows[i];
  c.candidates.clear();
  c.used = 0;
  std::fill(c.history_entries.begin(), c.history_entries.end(), 0u);
}

void erase_and_insert(Random& random, Case& c) {
  std::vector<int64_t> rows;
  for (auto at = c.row_of.begin(); at != c.row_of.end();) {
    if (random.below(3) == 0) {
      rows.push_back(at->second);
      at = c.row_of.erase(at);
    } else {
      ++at;
    }
  }
  erase_rows(c.map(), rows.data(), static_cast<int64_t>(rows.size()));
  c.check();
  std::vector<int64_t> ids;
  rows.clear();
  for (int64_t row = 0; row < c.rows(); ++row) {
    const int64_t id = random.below(1 << 20) - (1 << 30);
    if (c.occupied[row] || random.coin() || c.row_of.count(id)) continue;
    rows.push_back(row);
    ids.push_back(id);
    c.row_of[id] = row;
  }
  insert_ids(c.map(), ids.data(), rows.data(), static_cast<int64_t>(rows.size()));
}

void test_sequence(Random& random, int64_t rows, int64_t room, int64_t batch, int steps) {
  Case c(rows, room, static_cast<int>(1 + random.below(3)));
  for (int step = 0; step < steps; ++step) {
    count(random, c, random.below(batch + 1), step);
    c.check();
    if (random.below(3) == 0) {
      if (random.coin()) {
        replace<int64_t>(random, c, false);
      } else {
        replace<double>(random, c, true);
      }
    }
    if (random.below(4) == 0 && c.candidates.empty()) erase_and_insert(random, c);
    if (random.below(8) == 0) {
      std::vector<int64_t> held;
      for (const auto& [id, row] : c.row_of) held.push_back(row);
      std::fill(c.entries.begin(), c.entries.end(), 77u);
      rebuild_index(c.index(), held.data(), static_cast<int64_t>(held.size()));
    }
    c.check();
  }
}

// Whatever stands in an index, a search stays inside the map and comes to an end.
void test_damaged(Random& random) {
  Case c(1 + random.below(40), 1 + random.below(40), 1);
  for (auto& entry : c.entries) entry = static_cast<uint32_t>(random.below(int64_t{1} << 32));
  for (auto& entry : c.history_entries) entry = static_cast<uint32_t>(random.below(int64_t{1} << 32));
  c.used = random.below(100) - 30;
  std::vector<int64_t> ids(50), rows(50);
  for (auto& id : ids) id = random_id(random, 1000);
  count_ids(c.index(), {c.counts.data(), c.last.data()}, c.history(), ids.data(), 50, 1, -1, rows.data(), c.totals, 1);
  const int64_t row = random.below(c.rows());
  erase_rows(c.map(), &row, 1);
  insert_ids(c.map(), ids.data(), &row, 1);
}

}  // namespace

void test_collision() {
  Random random(5);
  for (int i = 0; i < 300; ++i) test_sequence(random, 1 + random.below(60), 1 + random.below(80), 70, 20);
  for (int i = 0; i < 300; ++i) test_damaged(random);
  test_sequence(random, 1, 1, 5, 50);
  test_sequence(random, 20000, 30000, 20000, 12);  // enough for several threads
}

}  // namespace rowwise
