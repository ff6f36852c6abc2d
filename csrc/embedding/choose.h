// Ids to rows, and nothing else: for those who send rows elsewhere before they are looked up.
#pragma once

#include "embedding/forward.h"

namespace rowwise {
namespace ROWWISE_ISA {

inline void choose_range(const Batch& batch, const Range& range, Outcome& outcome) {
  const Slot& slot = batch.slots[range.slot];
  const Table& table = batch.tables[slot.table];
  const Ids ids{slot.ids, batch.wide_ids};
  int64_t* rows = static_cast<int64_t*>(slot.rows);
  for (int64_t i = range.begin; i < range.end; ++i) {
    const int64_t id = ids[i];
    rows[i] = id;
    if (__builtin_expect(is_in_range(table, id), 1)) continue;
    rows[i] = choose_row(table, id);
    outcome.out_of_range += is_counted(table, id);
    if (rows[i] == kNoRow && is_refused(table, id)) outcome.refuse(Failure::id, range.slot, i, id);
  }
}

struct ChosenNumbers {
  int64_t work(int64_t) const { return 8; }
};

inline Failure choose_rows(const Batch& batch, int64_t* out_of_range) {
  const Ranges ranges(batch, ChosenNumbers());
  return ranges.run(out_of_range, [&](const Piece& piece, int) {
    for (int64_t r = 0; r < piece.count; ++r) choose_range(batch, piece.ranges[r], piece.outcomes[r]);
  });
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
