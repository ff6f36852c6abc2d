// The gradient of per-sample weights: one dot product an id.
#pragma once

#include "embedding/backward.h"

namespace rowwise {
namespace ROWWISE_ISA {

template <class W>
void add_dots(const Batch& batch, const Range& range, float* gradient) {
  const Slot& slot = batch.slots[range.slot];
  const Table& table = batch.tables[slot.table];
  const Ids ids{slot.ids, batch.wide_ids};
  const Bags bags{slot.offsets, batch.wide_offsets};
  const int64_t last = bags.begin(range.end) - 1;
  for (int64_t bag = range.begin; bag < range.end; ++bag) {
    const int64_t begin = bags.begin(bag), end = bags.end(bag);
    const int64_t count = divisor_of(slot, table, ids, bags, bag);
    for (int64_t i = begin; i < end; ++i) {
      prefetch_row<W>(table, ids[i + kAhead < last ? i + kAhead : last], 0,
                      static_cast<int>(table.dim < 256 ? table.dim * static_cast<int64_t>(sizeof(W)) : 512));
      const int64_t row = row_of(table, ids[i]);
      if (row < 0) continue;
      const W* x = static_cast<const W*>(table.weight) + row * table.dim;
      Block sum = Block::fill(0);
      for_blocks(table.dim, [&](int64_t c, int n) {
        sum = sum + load_block(x + c, n) * load_as(batch.rows_dtype, slot.rows, bag * slot.stride + c, n);
      });
      gradient[i] += count > 1 ? sum.sum() / static_cast<float>(count) : sum.sum();
    }
  }
}

// A task is a range of bags in all slots: where features share their ids, one task adds up what each of them says.
inline void weights_backward(const Batch& batch, float* gradient) {
  if (batch.num_slots == 0) return;
  constexpr int64_t kBags = 32;
  const int64_t bags = batch.slots[0].bags;
  in_pieces(batch.threads, (bags + kBags - 1) / kBags, [&](int64_t task, int) {
    for (int64_t s = 0; s < batch.num_slots; ++s) {
      const Range range{s, task * kBags, (task + 1) * kBags < bags ? (task + 1) * kBags : bags};
      switch (batch.tables[batch.slots[s].table].dtype) {
        case Float::f32: add_dots<float>(batch, range, gradient); break;
        case Float::f16: add_dots<Half>(batch, range, gradient); break;
        case Float::bf16: add_dots<Bfloat16>(batch, range, gradient); break;
      }
    }
  });
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
