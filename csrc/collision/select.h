// Which of the ids in a map and the candidates for it have the highest scores.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "collision/collision.h"
#include "pieces.h"
#include "scratch.h"

namespace rowwise {

// Numbers in the order of the scores; not a number is above all, as PyTorch sorts it.
inline uint64_t key_of(int64_t score) { return static_cast<uint64_t>(score) ^ (uint64_t{1} << 63); }

inline uint64_t key_of(double score) {
  if (score != score) return ~uint64_t{0};
  score += 0.0;  // -0 is 0
  uint64_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}

// The competitors as one sequence: rows that are held, then candidates. Equal scores are in this order.
template <class Score>
struct Competitors {
  const uint8_t* occupied;  // none: all rows are held
  const Score* rows;
  int64_t num_rows;
  const Score* candidates;
  int64_t num_candidates;

  bool held(int64_t row) const { return !occupied || occupied[row]; }

  int64_t size() const { return num_rows + num_candidates; }

  // Calls body(i, key) for those of [begin, end), in any order. Of i, only that it goes up by one counts.
  template <class Body>
  void for_range(int64_t begin, int64_t end, const Body& body) const {
    const int64_t held_end = std::min(end, num_rows);
    if (!occupied) {
      for (int64_t i = begin; i < held_end; ++i) body(i, key_of(rows[i]));
    } else {
      for (int64_t i = begin; i < held_end; ++i) {
        if (occupied[i]) body(i, key_of(rows[i]));
      }
    }
    for (int64_t i = std::max(begin, num_rows) - num_rows; i < end - num_rows; ++i) body(i, key_of(candidates[i]));
  }
};

constexpr int64_t kScoreBytes = 32;  // moved in the time that counting a score takes, about

// The key of a rank, how many keys are below it, and how many equal it.
struct Rank {
  uint64_t key;
  int64_t below, equal;
};

// Finds the `rank`-th smallest key, from 1, by its digits from the highest on.
template <class Score>
Rank find_rank(const Competitors<Score>& competitors, int64_t rank, int threads) {
  constexpr int kDigit = 11, kCounters = 4 << kDigit;
  if (competitors.size() < 1 << 14) threads = 1;
  // Digits that all keys share need no look.
  const uint64_t any = key_of(competitors.candidates[0]);
  std::atomic<uint64_t> differ_at{0};
  in_ranges(threads, competitors.size(), kScoreBytes, [&](int64_t begin, int64_t end, int) {
    uint64_t mine = 0;
    competitors.for_range(begin, end, [&](int64_t, uint64_t key) { mine |= key ^ any; });
    differ_at |= mine;
  });
  const uint64_t differ = differ_at;
  int bits = 0;
  while (bits < 64 && differ >> bits) ++bits;
  Rank found = {bits < 64 ? any >> bits : 0, 0, competitors.num_candidates};
  if (bits == 0) {
    for (int64_t i = 0; i < competitors.num_rows; ++i) found.equal += competitors.held(i);
  }
  const Scratch scratch(threads * kCounters * sizeof(int32_t));
  int32_t* counters = reinterpret_cast<int32_t*>(scratch.data());
  while (bits > 0) {
    const int digit = std::min(bits, kDigit), shift = bits - digit;
    const uint64_t mask = (uint64_t{1} << digit) - 1;
    // Scores that come often follow one another: four counters for each, or every count waits for the one before.
    std::memset(counters, 0, threads * kCounters * sizeof(int32_t));
    const uint64_t prefix = found.key;
    const int from = bits;
    in_ranges(threads, competitors.size(), kScoreBytes, [&](int64_t begin, int64_t end, int thread) {
      int32_t* mine = counters + int64_t{thread} * kCounters;
      competitors.for_range(begin, end, [&](int64_t i, uint64_t key) {
        if (from == 64 || key >> from == prefix) ++mine[(i & 3) << kDigit | ((key >> shift) & mask)];
      });
    });
    int64_t counts[1 << kDigit] = {};
    for (int i = 0; i < threads * kCounters; ++i) counts[i & ((1 << kDigit) - 1)] += counters[i];
    uint64_t chosen = 0;
    while (found.below + counts[chosen] < rank) found.below += counts[chosen++];
    found.key = found.key << digit | chosen;
    found.equal = counts[chosen];
    bits = shift;
  }
  return found;
}

// Writes the rows that lose, and which candidates win, where there are `excess` more competitors than rows; both in
// ascending order.
template <class Score>
void compete(const Competitors<Score>& competitors, int64_t excess, int threads, int64_t* lost, Replacement* result) {
  const int64_t count = competitors.num_candidates;
  if (excess <= 0) {
    for (int64_t i = 0; i < count; ++i) result->chosen[i] = i;
    result->num_rows = count;
    result->num_evicted = 0;
    return;
  }
  const Rank rank = find_rank(competitors, excess, threads);
  int64_t below = 0, equal = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t key = key_of(competitors.candidates[i]);
    below += key < rank.key;
    equal += key == rank.key;
  }
  // Of those that equal the rank, the last of the sequence lose.
  const int64_t losing = std::min(excess - rank.below, equal);
  int64_t rows_to_keep = rank.equal - equal - (excess - rank.below - losing), candidates_to_keep = equal - losing;
  result->num_evicted = excess - below - losing;
  result->num_rows = count - below - losing;
  // The last row or candidate of interest has been met before the end of the sequence.
  for (int64_t row = 0, held = 0; held < result->num_evicted; ++row) {
    const uint64_t key = key_of(competitors.rows[row]);
    const bool level = competitors.held(row) && key == rank.key;
    lost[held] = row;
    held += competitors.held(row) && (key < rank.key || (level && rows_to_keep <= 0));
    rows_to_keep -= level;
  }
  for (int64_t i = 0, held = 0; held < result->num_rows; ++i) {
    const uint64_t key = key_of(competitors.candidates[i]);
    const bool level = key == rank.key;
    result->chosen[held] = i;
    held += key > rank.key || (level && candidates_to_keep > 0);
    candidates_to_keep -= level;
  }
}

}  // namespace rowwise
