// The look-up: pooled rows of every bag of every slot, in one pass over the ids.
#pragma once

#include "embedding/row_choice.h"
#include "scratch.h"

namespace rowwise {
namespace ROWWISE_ISA {

// How many rows ahead rows are fetched: about 128 lines, at most 64 rows. That covers a miss to memory while both cores
// wait for it, and fits the first cache.
constexpr int64_t rows_ahead(int64_t bytes_a_row) {
  const int64_t lines = (bytes_a_row + 63) / 64, rows = 128 / lines;
  return rows > 64 ? 64 : rows < 8 ? 8 : rows;
}
constexpr int64_t kAhead = 16;  // of gradients
constexpr int kMaxBlocks = 8;  // blocks of a row that are summed in registers at a time

struct Range {  // bags [begin, end) of a slot
  int64_t slot, begin, end;
};

struct Outcome {
  Failure failure;
  int64_t out_of_range = 0;

  void refuse(Failure::Kind kind, int64_t slot, int64_t bag, int64_t value) {
    if (failure.kind != Failure::nothing) return;
    failure.kind = kind;
    failure.slot = slot;
    failure.bag_index = bag;
    failure.value = value;
  }
};

template <class W>
ROWWISE_INLINE void prefetch_row(const Table& table, int64_t id, int64_t column, int bytes) {
  const uint64_t here = static_cast<uint64_t>(id) - static_cast<uint64_t>(table.first_row);
  const uint64_t at = here * static_cast<uint64_t>(table.dim) + static_cast<uint64_t>(column);
  const uintptr_t row = reinterpret_cast<uintptr_t>(table.weight) + at * sizeof(W);
  for (int line = 0; line < bytes; line += 64) __builtin_prefetch(reinterpret_cast<const char*>(row + line), 0, 3);
}

// Elements [at, at + n) of y, n <= 16. The type is a run-time branch: always the same one, and once a block, not an id.
ROWWISE_INLINE void store_as(const Block& block, Float dtype, void* y, int64_t at, int n) {
  switch (dtype) {
    case Float::f32:
      return n == kBlock ? block.store(static_cast<float*>(y) + at) : block.store_head(static_cast<float*>(y) + at, n);
    case Float::f16:
      return n == kBlock ? block.store(static_cast<Half*>(y) + at) : block.store_head(static_cast<Half*>(y) + at, n);
    case Float::bf16:
      return n == kBlock ? block.store(static_cast<Bfloat16*>(y) + at)
                         : block.store_head(static_cast<Bfloat16*>(y) + at, n);
  }
}

// Columns [column, column + 16 * kBlocks (+ tail)) of the bags of a range. kTail: the last block has `tail` < 16.
template <class W, int kBlocks, bool kTail, bool kWeighted>
void pool_columns(const Batch& batch, const Range& range, int64_t column, int tail, Outcome& outcome) {
  const Slot& slot = batch.slots[range.slot];
  const Table& table = batch.tables[slot.table];
  const Ids ids{slot.ids, batch.wide_ids};
  const Bags bags{slot.offsets, batch.wide_offsets};
  const W* weight = static_cast<const W*>(table.weight) + column;
  constexpr int kAll = kBlocks + (kTail ? 1 : 0);
  constexpr int kBytes = kAll * kBlock * static_cast<int>(sizeof(W));
  constexpr int64_t ahead = rows_ahead(kBytes);
  const int64_t last = bags.begin(range.end) - 1;
  for (int64_t bag = range.begin; bag < range.end; ++bag) {
    const int64_t begin = bags.begin(bag), end = bags.end(bag);
    Block sum[kAll];
    for (int b = 0; b < kAll; ++b) sum[b] = Block::fill(0);
    int64_t count = end - begin;
    if (slot.pooling == Pooling::none && count != 1) outcome.refuse(Failure::bag, range.slot, bag, count);
    for (int64_t i = begin; i < end; ++i) {
      prefetch_row<W>(table, ids[i + ahead < last ? i + ahead : last], column, kBytes);
      const int64_t id = ids[i];
      int64_t row;
      if (__builtin_expect(is_direct(table, id), 1)) {
        row = id - table.first_row;
      } else {
        row = row_of_other(table, id);
        if (column == 0) outcome.out_of_range += is_counted(table, id);
        if (row == kNoRow) {
          if (is_refused(table, id)) outcome.refuse(Failure::id, range.slot, bag, id);
          --count;
        }
        if (row < 0) continue;
      }
      const W* x = weight + row * table.dim;
      const float scale = kWeighted ? slot.sample_weights[i] : 1.0f;
      for (int b = 0; b < kAll; ++b) {
        const Block block = kTail && b == kBlocks ? Block::load_head(x + b * kBlock, tail) : Block::load(x + b * kBlock);
        sum[b] = sum[b] + (kWeighted ? block * scale : block);
      }
    }
    if (slot.divisors) count = slot.divisors[bag];
    if (slot.pooling == Pooling::mean && count > 1) {
      for (int b = 0; b < kAll; ++b) sum[b] = sum[b] / static_cast<float>(count);
    }
    const int64_t y = bag * slot.stride + column;
    for (int b = 0; b < kAll; ++b)
      store_as(sum[b], batch.rows_dtype, slot.rows, y + b * kBlock, kTail && b == kBlocks ? tail : kBlock);
  }
}

template <class W, int kBlocks, bool kWeighted>
void pool_rest(const Batch& batch, const Range& range, int64_t column, int tail, Outcome& outcome) {
  if (tail) {
    pool_columns<W, kBlocks, true, kWeighted>(batch, range, column, tail, outcome);
  } else if constexpr (kBlocks > 0) {
    pool_columns<W, kBlocks, false, kWeighted>(batch, range, column, 0, outcome);
  }
}

template <class W, bool kWeighted>
void pool(const Batch& batch, const Range& range, Outcome& outcome) {
  const int64_t dim = batch.tables[batch.slots[range.slot].table].dim;
  int64_t column = 0;
  for (; dim - column >= kBlock * kMaxBlocks; column += kBlock * kMaxBlocks)
    pool_columns<W, kMaxBlocks, false, kWeighted>(batch, range, column, 0, outcome);
  const int tail = static_cast<int>((dim - column) % kBlock);
  switch ((dim - column) / kBlock) {
    case 0: return pool_rest<W, 0, kWeighted>(batch, range, column, tail, outcome);
    case 1: return pool_rest<W, 1, kWeighted>(batch, range, column, tail, outcome);
    case 2: return pool_rest<W, 2, kWeighted>(batch, range, column, tail, outcome);
    case 3: return pool_rest<W, 3, kWeighted>(batch, range, column, tail, outcome);
    case 4: return pool_rest<W, 4, kWeighted>(batch, range, column, tail, outcome);
    case 5: return pool_rest<W, 5, kWeighted>(batch, range, column, tail, outcome);
    case 6: return pool_rest<W, 6, kWeighted>(batch, range, column, tail, outcome);
    case 7: return pool_rest<W, 7, kWeighted>(batch, range, column, tail, outcome);
  }
}

template <class W>
void pool(const Batch& batch, const Range& range, Outcome& outcome) {
  if (batch.slots[range.slot].sample_weights)
    pool<W, true>(batch, range, outcome);
  else
    pool<W, false>(batch, range, outcome);
}

inline void pool(const Batch& batch, const Range& range, Outcome& outcome) {
  switch (batch.tables[batch.slots[range.slot].table].dtype) {
    case Float::f32: return pool<float>(batch, range, outcome);
    case Float::f16: return pool<Half>(batch, range, outcome);
    case Float::bf16: return pool<Bfloat16>(batch, range, outcome);
  }
}

// Bags a task: small enough to share out evenly, large enough that prefetching gets going.
inline int64_t bags_per_task(const Batch& batch, int64_t bags, int64_t positions) {
  const int64_t pieces = static_cast<int64_t>(batch.threads) * 8 / (batch.num_slots ? batch.num_slots : 1) + 1;
  const int64_t share = (bags + pieces - 1) / pieces;
  const int64_t longest = positions > 0 ? 4096 * bags / positions + 1 : bags;  // about 4096 ids
  const int64_t least = 64;
  const int64_t size = share < longest ? share : longest;
  return size > least ? size : least;
}

// Work below this many bytes is done by the calling thread: waking the others would take longer.
constexpr int64_t kSmallWork = int64_t{1} << 17;

// Runs task(range, outcome) on ranges of bags of all slots. `bytes_a_row`, of a slot, says how much work a bag or an id is.
template <class Bytes, class Task>
ROWWISE_INLINE Failure run_ranges(const Batch& batch, int64_t* out_of_range, const Bytes& bytes_a_row, const Task& task) {
  int64_t num_ranges = 0, bytes = 0;
  for (int64_t s = 0; s < batch.num_slots; ++s) {
    const Slot& slot = batch.slots[s];
    const Bags bags{slot.offsets, batch.wide_offsets};
    const int64_t positions = bags.begin(slot.bags) - bags.begin(0);
    const int64_t size = bags_per_task(batch, slot.bags, positions);
    num_ranges += (slot.bags + size - 1) / size;
    bytes += (positions + slot.bags) * bytes_a_row(slot);
  }
  Scratch scratch(static_cast<size_t>(num_ranges) * (sizeof(Range) + sizeof(Outcome)));
  Range* ranges = reinterpret_cast<Range*>(scratch.data());
  Outcome* outcomes = reinterpret_cast<Outcome*>(ranges + num_ranges);
  int64_t n = 0;
  for (int64_t s = 0; s < batch.num_slots; ++s) {
    const Slot& slot = batch.slots[s];
    const Bags bags{slot.offsets, batch.wide_offsets};
    const int64_t size = bags_per_task(batch, slot.bags, bags.begin(slot.bags) - bags.begin(0));
    for (int64_t begin = 0; begin < slot.bags; begin += size, ++n) {
      ranges[n] = Range{s, begin, begin + size < slot.bags ? begin + size : slot.bags};
      outcomes[n] = Outcome{};
    }
  }
  in_parallel(bytes < kSmallWork ? 1 : batch.threads, num_ranges, [&](int64_t i, int) { task(ranges[i], outcomes[i]); });
  Failure failure;
  for (int64_t i = 0; i < num_ranges; ++i) {  // in order of slot and bag, so the first failure is the same every time
    out_of_range[batch.slots[ranges[i].slot].table] += outcomes[i].out_of_range;
    if (failure.kind == Failure::nothing) failure = outcomes[i].failure;
  }
  return failure;
}

inline Failure forward(const Batch& batch, int64_t* out_of_range) {
  return run_ranges(
      batch, out_of_range, [&](const Slot& slot) { return batch.tables[slot.table].dim * 4; },
      [&](const Range& range, Outcome& outcome) { pool(batch, range, outcome); });
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
