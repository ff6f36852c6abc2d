#include "collision/collision.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "collision/select.h"
#include "pieces.h"
#include "scratch.h"

namespace rowwise {
namespace {

constexpr int64_t kBlock = 32;            // ids under way at a time: about as many misses as a core can wait for
constexpr int64_t kParallelIds = 1 << 12;  // below this one thread is as fast
constexpr int64_t kSearchBytes = 1024;      // moved in the time that searching for an id takes, about
constexpr int64_t kAhead = 12;             // rows between asking for memory and using it

// To the second cache, which waits for more lines at a time than the first.
template <class T>
void fetch(const T* address) {
  __builtin_prefetch(address, 0, 2);
}

// One of two numbers. Whether an id has a row no processor can foresee, so these do without a branch.
int64_t either(bool condition, int64_t yes, int64_t no) {
  const int64_t mask = -static_cast<int64_t>(condition);
  return (yes & mask) | (no & ~mask);
}

// A row whose id can be read: the first one in place of none.
int64_t readable(int64_t row) { return row & ~(row >> 63); }

int threads_for(int64_t count, int threads) { return count < kParallelIds ? 1 : threads; }

// A block of searches, in three steps that each wait for memory the step before has asked for.
struct Searches {
  uint64_t hashes[kBlock];
  int64_t rows[kBlock];
  bool unsettled[kBlock];  // if the first candidate is another id, there may be a second

  void hash(const Index& index, const int64_t* ids, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      hashes[i] = hash_of(ids[i]);
      fetch(index.group(index.home(hashes[i])));
    }
  }

  void probe(const Index& index, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t* group = index.group(index.home(hashes[i]));
      const uint32_t vacant = index.free(group), similar = index.similar(group, hashes[i]) & ~vacant;
      const uint32_t entry = group[__builtin_ctz(similar | 1u << (kGroup - 1))];
      rows[i] = either(similar != 0, index.row(entry), -1);
      unsettled[i] = (vacant == 0) | ((similar & (similar - 1)) != 0);
      fetch(index.ids + readable(rows[i]));
    }
  }

  void settle(const Index& index, const int64_t* ids, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const bool found = (rows[i] >= 0) & (index.ids[readable(rows[i])] == ids[i]);
      rows[i] = either(found, rows[i], -1);
      if (!found & unsettled[i]) rows[i] = index.find(ids[i], hashes[i]);
    }
  }
};

// Calls done(first, searches) for one block after another, while those behind it are under way; and likely(row) some
// time before for rows that a search is likely to find.
template <class Likely, class Done>
void search(const Index& index, const int64_t* ids, int64_t count, const Likely& likely, const Done& done) {
  Searches searches[3];
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  const auto size = [=](int64_t block) { return std::min(kBlock, count - block * kBlock); };
  for (int64_t block = 0; block < blocks + 2; ++block) {
    if (block < blocks) searches[block % 3].hash(index, ids + block * kBlock, size(block));
    if (block >= 1 && block - 1 < blocks) {
      searches[(block - 1) % 3].probe(index, size(block - 1));
      for (int64_t i = 0; i < size(block - 1); ++i) likely(readable(searches[(block - 1) % 3].rows[i]));
    }
    if (block >= 2) {
      const int64_t first = (block - 2) * kBlock;
      searches[(block - 2) % 3].settle(index, ids + first, size(block - 2));
      done(first, size(block - 2), searches[(block - 2) % 3]);
    }
  }
}

// Counts ids in the history, the ones without a row. Returns how many found it full.
int64_t count_absent(const History& history, const int64_t* batch, const int64_t* rows, int64_t count, int64_t now) {
  const Index& index = history.index;
  const Scratch scratch((static_cast<size_t>(count) + 1) * sizeof(int64_t));
  int64_t* absent = reinterpret_cast<int64_t*>(scratch.data());
  int64_t num_absent = 0, forgotten = 0;
  for (int64_t i = 0; i < count; ++i) {
    absent[num_absent] = batch[i];
    num_absent += rows[i] < 0;
  }
  const auto likely = [&](int64_t row) {
    fetch(history.counts + row);
    fetch(history.last + row);
  };
  search(index, absent, num_absent, likely, [&](int64_t first, int64_t n, const Searches& searches) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t id = absent[first + i];
      const uint64_t hash = searches.hashes[i];
      int64_t row = searches.rows[i];
      if (row < 0) row = index.find(id, hash);  // it may have been entered since it was searched for
      if (row < 0) {
        row = *history.size;
        if (row < 0 || row >= index.rows) {
          ++forgotten;
          continue;
        }
        ++*history.size;
        history.ids[row] = id;
        history.counts[row] = 0;
        index.enter(row, hash);
      }
      ++history.counts[row];
      history.last[row] = now;
    }
  });
  return forgotten;
}

// Counts the rows that belong to this part of several: cache lines of eight, so that no two parts write to one.
int64_t count_present(const Metadata& metadata, const int64_t* rows, int64_t count, int64_t now, uint32_t part,
                      uint32_t parts) {
  constexpr int64_t kBuffer = 512;
  int64_t mine[kBuffer + kAhead], total = 0;
  std::memset(mine, 0, sizeof mine);
  for (int64_t at = 0; at < count;) {
    int64_t held = 0;
    for (; at < count && held < kBuffer; ++at) {
      mine[held] = rows[at];
      held += rows[at] >= 0 && (parts == 1 || static_cast<uint32_t>(rows[at] >> 3) % parts == part);
    }
    total += held;
    if (metadata.counts) {
      for (int64_t i = 0; i < std::min(held, kAhead); ++i) fetch(metadata.counts + mine[i]);
      for (int64_t i = 0; i < held; ++i) {
        if (i + kAhead < held) fetch(metadata.counts + mine[i + kAhead]);
        ++metadata.counts[mine[i]];
      }
    }
    if (metadata.last) {
      for (int64_t i = 0; i < held; ++i) metadata.last[mine[i]] = now;
    }
  }
  return total;
}

// Removes the entries of rows; the ids are still there.
void remove_all(const Index& index, const int64_t* rows, int64_t count) {
  for (int64_t i = 0; i < count + 2 * kAhead; ++i) {
    if (i < count) fetch(index.ids + rows[i]);
    if (i >= kAhead && i - kAhead < count) fetch(index.group(index.home(hash_of(index.ids[rows[i - kAhead]]))));
    if (i >= 2 * kAhead) index.remove(rows[i - 2 * kAhead]);
  }
}

// Enters rows, whose ids are there already.
void enter_all(const Index& index, const int64_t* rows, int64_t count) {
  for (int64_t i = 0; i < count + 2 * kAhead; ++i) {
    if (i < count) fetch(index.ids + rows[i]);
    if (i >= kAhead && i - kAhead < count) fetch(index.group(index.home(hash_of(index.ids[rows[i - kAhead]]))));
    if (i >= 2 * kAhead) index.enter(rows[i - 2 * kAhead], hash_of(index.ids[rows[i - 2 * kAhead]]));
  }
}

// In bytes as long as these can hold the sum, of which the processor adds up many at a time.
int64_t count_free(const uint8_t* occupied, int64_t count) {
  int64_t free = 0;
  for (int64_t first = 0; first < count; first += 128) {
    uint8_t sum = 0;
    for (int64_t row = first; row < std::min(first + 128, count); ++row) sum += occupied[row] == 0;
    free += sum;
  }
  return free;
}

template <class Score>
Competitors<Score> competitors(const Map& map, const Scores& scores, int64_t free, int64_t count) {
  return {free == 0 ? nullptr : map.occupied, static_cast<const Score*>(scores.rows), map.index.rows,
          static_cast<const Score*>(scores.candidates), count};
}

}  // namespace

void find_ids(const Index& index, const int64_t* wanted, int64_t count, int64_t missing, int64_t* rows, int threads) {
  const auto nothing = [](int64_t) {};
  in_ranges(threads_for(count, threads), count, kSearchBytes, [&](int64_t begin, int64_t end, int) {
    search(index, wanted + begin, end - begin, nothing, [&](int64_t first, int64_t n, const Searches& searches) {
      for (int64_t i = 0; i < n; ++i) rows[begin + first + i] = either(searches.rows[i] < 0, missing, searches.rows[i]);
    });
  });
}

void count_ids(const Index& index, const Metadata& metadata, const History& history, const int64_t* batch,
               int64_t count, int64_t now, int64_t missing, int64_t* rows, int64_t* totals, int threads) {
  find_ids(index, batch, count, -1, rows, threads);
  // One part takes the ids without a row, whose order matters; the others share the rows.
  const int parts = threads_for(count, threads), counting = parts > 1 ? parts - 1 : 1;
  std::atomic<int64_t> present{0}, forgotten{0};
  in_pieces(parts, counting + 1, [&](int64_t part, int) {
    if (part == 0) {
      forgotten += count_absent(history, batch, rows, count, now);
    } else {
      present += count_present(metadata, rows, count, now, static_cast<uint32_t>(part - 1),
                               static_cast<uint32_t>(counting));
    }
  });
  if (missing != -1) {
    for (int64_t i = 0; i < count; ++i) rows[i] = either(rows[i] < 0, missing, rows[i]);
  }
  totals[0] += present;
  totals[1] += count - present;
  totals[2] += forgotten;
}

void replace_ids(const Map& map, const Scores& scores, const int64_t* candidates, int64_t count, Replacement* result,
                 int threads) {
  const int64_t capacity = map.index.rows;
  const int64_t free = count_free(map.occupied, capacity);
  const int64_t before = std::min(free, count);
  int64_t* rows = result->rows;
  for (int64_t row = 0, taken = 0; taken < before; ++row) {
    rows[taken] = row;
    taken += !map.occupied[row];
  }
  if (scores.floating) {
    compete(competitors<double>(map, scores, free, count), count - free, threads, rows + before, result);
  } else {
    compete(competitors<int64_t>(map, scores, free, count), count - free, threads, rows + before, result);
  }
  const int64_t* evicted_rows = rows + before;
  for (int64_t i = 0; i < result->num_evicted; ++i) {
    if (i + kAhead < result->num_evicted) fetch(map.ids + evicted_rows[i + kAhead]);
    result->evicted[i] = map.ids[evicted_rows[i]];
  }
  remove_all(map.index, evicted_rows, result->num_evicted);
  for (int64_t i = 0; i < result->num_rows; ++i) {
    map.ids[rows[i]] = candidates[result->chosen[i]];
    map.occupied[rows[i]] = true;
  }
  enter_all(map.index, rows, result->num_rows);
}

void move_counts(const Replacement& done, const Metadata& candidates, const Metadata& rows) {
  for (int64_t i = 0; i < done.num_rows; ++i) {
    if (rows.counts) rows.counts[done.rows[i]] = candidates.counts[done.chosen[i]];
    if (rows.last) rows.last[done.rows[i]] = candidates.last[done.chosen[i]];
  }
}

// Most ids have kept their rows, which a look at the id of the row tells. The index is asked for the others alone.
void find_again(const Map& map, const int64_t* wanted, int64_t count, int64_t missing, int64_t* rows, int threads) {
  constexpr int64_t kBuffer = 512;
  const uint64_t capacity = static_cast<uint64_t>(map.index.rows);
  const auto nothing = [](int64_t) {};
  in_ranges(threads_for(count, threads), count, kSearchBytes, [&](int64_t begin, int64_t end, int) {
    int64_t ids[kBuffer], places[kBuffer];
    for (int64_t at = begin; at < end;) {
      int64_t others = 0;
      for (; at < end && others < kBuffer; ++at) {
        const int64_t row = either(static_cast<uint64_t>(rows[at]) < capacity, rows[at], 0);
        const bool kept = (row == rows[at]) & (map.occupied[row] != 0) & (map.ids[row] == wanted[at]);
        ids[others] = wanted[at];
        places[others] = at;
        others += !kept;
      }
      search(map.index, ids, others, nothing, [&](int64_t first, int64_t n, const Searches& searches) {
        for (int64_t i = 0; i < n; ++i) {
          rows[places[first + i]] = either(searches.rows[i] < 0, missing, searches.rows[i]);
        }
      });
    }
  });
}

void insert_ids(const Map& map, const int64_t* ids, const int64_t* rows, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    map.ids[rows[i]] = ids[i];
    map.occupied[rows[i]] = true;
  }
  enter_all(map.index, rows, count);
}

void erase_rows(const Map& map, const int64_t* rows, int64_t count) {
  remove_all(map.index, rows, count);
  for (int64_t i = 0; i < count; ++i) map.occupied[rows[i]] = false;
}

void rebuild_index(const Index& index, const int64_t* rows, int64_t count) {
  std::memset(index.entries, 0, index.groups * kGroup * sizeof(uint32_t));
  enter_all(index, rows, count);
}

}  // namespace rowwise
