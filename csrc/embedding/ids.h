// From an id to the row it chooses, and walks over the bags of a slot.
#pragma once

#include "embedding/embedding.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include "block.h"

namespace rowwise {
namespace ROWWISE_ISA {

constexpr int64_t kNoRow = -1;

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

ROWWISE_INLINE bool is_known(const Table& table, int64_t id) {
  return static_cast<uint64_t>(id) < static_cast<uint64_t>(table.known);
}

// The row of an id that is not known; kNoRow where it has none.
inline int64_t row_of_unknown(const Table& table, int64_t id) {
  switch (table.policy) {
    case Policy::remap:
      return table.base + static_cast<int64_t>((hash_id(id) >> 1) % static_cast<uint64_t>(table.span));
    case Policy::clamp:
      return table.known == 0 ? kNoRow : id < 0 ? 0 : table.known - 1;
    case Policy::error:
    case Policy::ignore:
      return kNoRow;
  }
  return kNoRow;
}

ROWWISE_INLINE int64_t row_of(const Table& table, int64_t id) {
  return is_known(table, id) ? id : row_of_unknown(table, id);
}

// Runs task(0) .. task(count - 1) on up to `threads` threads.
template <class Task>
ROWWISE_INLINE void in_parallel(int threads, int64_t count, const Task& task) {
#ifdef _OPENMP
  if (threads > 1 && count > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) task(i, omp_get_thread_num());
    return;
  }
#else
  (void)threads;
#endif
  for (int64_t i = 0; i < count; ++i) task(i, 0);
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
