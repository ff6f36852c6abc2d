// From an id to the row it chooses, and walks over the bags of a slot.
#pragma once

#include "embedding/embedding.h"

#include "block.h"

namespace rowwise {
namespace ROWWISE_ISA {

constexpr int64_t kNoRow = -1;      // of an id that no row stands for: a mean does not count it
constexpr int64_t kElsewhere = -2;  // of an id whose row another shard holds: a mean counts it

struct Ids {
  const void* data;
  bool wide;
  ROWWISE_INLINE int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

struct Bags {
  const void* offsets;  // none: bag b is position b
  bool wide;
  ROWWISE_INLINE int64_t begin(int64_t bag) const {
    if (offsets == nullptr) return bag;
    return wide ? static_cast<const int64_t*>(offsets)[bag] : static_cast<const int32_t*>(offsets)[bag];
  }
  ROWWISE_INLINE int64_t end(int64_t bag) const { return begin(bag + 1); }
};

template <class T>
bool never_falls(const T* offsets, int64_t count) {
  bool falls = false;
  for (int64_t i = 1; i < count; ++i) falls |= offsets[i] < offsets[i - 1];
  return !falls;
}

inline bool offsets_fit(const void* offsets, bool wide, int64_t count, int64_t values) {
  const Bags bags{offsets, wide};
  if (count < 1 || bags.begin(0) < 0 || bags.begin(count - 1) > values) return false;
  return wide ? never_falls(static_cast<const int64_t*>(offsets), count)
              : never_falls(static_cast<const int32_t*>(offsets), count);
}

ROWWISE_INLINE bool is_in_range(const Table& table, int64_t id) {
  return static_cast<uint64_t>(id) < static_cast<uint64_t>(table.num_embeddings);
}

// The row of the whole table that an id chooses; kNoRow where no row stands for it. It is decided here and nowhere else.
inline int64_t choose_row(const Table& table, int64_t id) {
  if (is_in_range(table, id)) return id;
  switch (table.policy) {
    case Policy::remap:
      return table.base + hash_into(id, table.span);
    case Policy::clamp:
      return table.num_embeddings == 0 ? kNoRow : id < 0 ? 0 : table.num_embeddings - 1;
    case Policy::error:
    case Policy::ignore:
    case Policy::rows:
      return kNoRow;
  }
  return kNoRow;
}

// Whether an id that no row stands for is an error.
inline bool is_refused(const Table& table, int64_t id) {
  return table.policy == Policy::error || (table.policy == Policy::rows && id != kNoRow);
}

// Whether an id is counted as out of range. Rows were counted when they were chosen.
inline bool is_counted(const Table& table, int64_t id) { return table.policy != Policy::rows && !is_in_range(table, id); }

// Whether an id is a row itself, and one of this shard: nearly always, so that one comparison decides.
ROWWISE_INLINE bool is_direct(const Table& table, int64_t id) {
  return static_cast<uint64_t>(id) - static_cast<uint64_t>(table.first_row) < static_cast<uint64_t>(table.direct);
}

// The same for an id that is not direct.
inline int64_t row_of_other(const Table& table, int64_t id) {
  const int64_t row = choose_row(table, id);
  if (row == kNoRow) return kNoRow;
  const int64_t here = row - table.first_row;
  return here >= 0 && here < table.rows ? here : kElsewhere;
}

// The row of this shard that an id chooses, counted from its first; kNoRow or kElsewhere where there is none.
ROWWISE_INLINE int64_t row_of(const Table& table, int64_t id) {
  return is_direct(table, id) ? id - table.first_row : row_of_other(table, id);
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
