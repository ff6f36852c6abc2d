// Id maps: which row of a table an id holds. See torchrec/ops/collision.
#pragma once

#include <cstdint>

#include "collision/index.h"

namespace rowwise {

// The row of each wanted id, or `missing`.
void find_ids(const Index& index, const int64_t* wanted, int64_t count, int64_t missing, int64_t* rows, int threads);

// Ids without a row, in order of first appearance: the first `*size` of as many as the index has rows.
struct History {
  Index index;
  int64_t *ids, *counts, *last, *size;
};

// What is counted with each row, or with each candidate for one; none: not wanted.
struct Metadata {
  int64_t *counts, *last;
};

// Looks a batch up and counts each occurrence, with its row or in the history. Adds to `totals` the occurrences with a
// row, those without, and those of the latter that found the history full.
void count_ids(const Index& index, const Metadata& metadata, const History& history, const int64_t* batch,
               int64_t count, int64_t now, int64_t missing, int64_t* rows, int64_t* totals, int threads);

struct Map {
  Index index;
  int64_t* ids;
  uint8_t* occupied;  // whether a row is held: not 0
};

// One score for each row and one for each candidate: all int64 or all double.
struct Scores {
  const void *rows, *candidates;
  bool floating;
};

// What came of a replacement: `rows` and `chosen` have room for the smaller number of rows and candidates, `evicted` too.
struct Replacement {
  int64_t *rows, *chosen, *evicted;
  int64_t num_rows, num_evicted;
};

// Lets candidates compete for rows with the ids that hold one. They are distinct, and none is in the map.
void replace_ids(const Map& map, const Scores& scores, const int64_t* candidates, int64_t count, Replacement* result,
                 int threads);

// What a replacement comes with: candidates bring their counts, and a batch whose rows were found before has new ones.
void move_counts(const Replacement& done, const Metadata& candidates, const Metadata& rows);
void find_again(const Map& map, const int64_t* wanted, int64_t count, int64_t missing, int64_t* rows, int threads);

// Rows are distinct and below map.index.rows; those inserted are free, those erased are held.
void insert_ids(const Map& map, const int64_t* ids, const int64_t* rows, int64_t count);
void erase_rows(const Map& map, const int64_t* rows, int64_t count);
void rebuild_index(const Index& index, const int64_t* rows, int64_t count);

}  // namespace rowwise
