// The gradient of per-sample weights: one dot product an id.
#pragma once

#include "embedding/backward.h"

namespace rowwise {
namespace ROWWISE_ISA {

template <class W>
void dot_rows(const Batch& batch, const Range& range, float* gradient) {
  const Slot& slot = batch.slots[range.slot];
  const Table& table = batch.tables[slot.table];
  const Ids ids{slot.ids, batch.wide_ids};
  const Bags bags{slot.offsets, batch.wide_offsets};
  const int64_t last = bags.begin(range.end) - 1;
  for (int64_t bag = range.begin; bag < range.end; ++bag) {
    const int64_t begin = bags.begin(bag), end = bags.end(bag);
    const int64_t count = slot.pooling == Pooling::mean ? counted(table, ids, begin, end) : 1;
    for (int64_t i = begin; i < end; ++i) {
      prefetch_row<W>(table, ids[i + kAhead < last ? i + kAhead : last], 0,
                      static_cast<int>(table.dim < 256 ? table.dim * static_cast<int64_t>(sizeof(W)) : 512));
      const int64_t row = row_of(table, ids[i]);
      if (row == kNoRow) {
        gradient[i] = 0;
        continue;
      }
      const W* x = static_cast<const W*>(table.weight) + row * table.dim;
      Block sum = Block::fill(0);
      for_blocks(table.dim, [&](int64_t c, int n) {
        sum = sum + load_block(x + c, n) * load_as(batch.rows_dtype, slot.rows, bag * slot.stride + c, n);
      });
      gradient[i] = count > 1 ? sum.sum() / static_cast<float>(count) : sum.sum();
    }
  }
}

inline void weights_backward(const Batch& batch, float* const* gradients) {
  in_parallel(batch.threads, batch.num_slots, [&](int64_t s, int) {
    const Slot& slot = batch.slots[s];
    const Range range{s, 0, slot.bags};
    switch (batch.tables[slot.table].dtype) {
      case Float::f32: return dot_rows<float>(batch, range, gradients[s]);
      case Float::f16: return dot_rows<Half>(batch, range, gradients[s]);
      case Float::bf16: return dot_rows<Bfloat16>(batch, range, gradients[s]);
    }
  });
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
