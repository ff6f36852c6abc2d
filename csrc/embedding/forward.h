// The look-up: pooled rows of every bag of every slot. A piece of work is some ranges of bags, each of one slot. First all
// its ids choose their rows, in one pass that vectors do; what is left for the loop that waits for memory is to fetch rows
// and to add them up. Rows are fetched ahead over all ranges of a piece: small batches have a few rows of each table.
#pragma once

#include "embedding/row_choice.h"
#include "pieces.h"
#include "scratch.h"

namespace rowwise {
namespace ROWWISE_ISA {

// How many rows ahead rows are fetched: about 128 lines, at most 64 rows. That covers a miss to memory while both cores
// wait for it.
constexpr int64_t kMostAhead = 64;
constexpr int64_t rows_ahead(int64_t bytes_a_row) {
  const int64_t lines = (bytes_a_row + 63) / 64, rows = 128 / lines;
  return rows > kMostAhead ? kMostAhead : rows < 8 ? 8 : rows;
}
constexpr int64_t kAhead = 16;  // of gradients
constexpr int kMaxBlocks = 8;  // blocks of a row that are summed in registers at a time
constexpr int64_t kPiece = 4096, kLeastPiece = 512;  // ids of a piece, about

struct Range {  // bags [begin, end) of a slot
  int64_t slot, begin, end;
};

struct Outcome {
  Failure failure;
  int64_t out_of_range = 0;

  // Of several the first bag counts, and of that what was refused first.
  void refuse(Failure::Kind kind, int64_t slot, int64_t bag, int64_t value) {
    if (failure.kind != Failure::nothing && failure.bag_index <= bag) return;
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
  for (int line = 0; line < bytes; line += 64) __builtin_prefetch(reinterpret_cast<const char*>(row + line), 0, 2);
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

// Where the rows of the positions of a range are.
struct Chosen {
  int64_t first;      // the position that `at` begins with
  int64_t ahead;      // how many rows, from `at` on, are to be fetched before the first is read
  const int64_t* at;  // addresses of rows; kNoRow, kElsewhere. Behind the last of a piece are kMostAhead to be fetched
};

// Returns whether all ids are direct; where one is not, what is written says nothing.
template <class Id>
bool choose_direct(const Table& table, const Id* ids, int64_t count, int64_t row_bytes, int64_t* at) {
  const uint64_t first = static_cast<uint64_t>(table.first_row), direct = static_cast<uint64_t>(table.direct);
  const uint64_t weight = reinterpret_cast<uintptr_t>(table.weight);
  bool all = true;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t row = static_cast<uint64_t>(static_cast<int64_t>(ids[i])) - first;
    at[i] = static_cast<int64_t>(weight + row * static_cast<uint64_t>(row_bytes));
    all &= row < direct;
  }
  return all;
}

inline int64_t bag_of(const Bags& bags, const Range& range, int64_t position) {
  int64_t bag = range.begin;
  while (bags.end(bag) <= position) ++bag;
  return bag;
}

inline int64_t positions_of(const Batch& batch, const Range& range) {
  const Bags bags{batch.slots[range.slot].offsets, batch.wide_offsets};
  return bags.begin(range.end) - bags.begin(range.begin);
}

// Writes where the rows of a range are; `row_bytes`: from the begin of one row of the table to that of the next.
inline void choose(const Batch& batch, const Range& range, int64_t row_bytes, int64_t* at, Outcome& outcome) {
  const Slot& slot = batch.slots[range.slot];
  const Table& table = batch.tables[slot.table];
  const Ids ids{slot.ids, batch.wide_ids};
  const Bags bags{slot.offsets, batch.wide_offsets};
  const int64_t first = bags.begin(range.begin), count = positions_of(batch, range);
  const bool all = ids.wide ? choose_direct(table, static_cast<const int64_t*>(slot.ids) + first, count, row_bytes, at)
                            : choose_direct(table, static_cast<const int32_t*>(slot.ids) + first, count, row_bytes, at);
  for (int64_t i = 0; !all && i < count; ++i) {
    const int64_t id = ids[first + i], row = row_of(table, id);
    at[i] = row < 0 ? row : reinterpret_cast<intptr_t>(table.weight) + row * row_bytes;
    outcome.out_of_range += is_counted(table, id);
    if (row == kNoRow && is_refused(table, id))
      outcome.refuse(Failure::id, range.slot, bag_of(bags, range, first + i), id);
  }
}

// Fetches a row to the second cache: processors wait for more lines there than in the first, and what the first then lacks
// takes a few cycles, which other rows fill.
ROWWISE_INLINE void fetch(int64_t address, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(static_cast<uintptr_t>(address + line)), 0, 2);
}
ROWWISE_INLINE void fetch(const void* memory, int64_t at, int64_t bytes) { fetch(reinterpret_cast<intptr_t>(memory) + at, bytes); }

// How rows of plain numbers are read, from a column on. A family whose rows are something else brings a class with the same
// methods.
template <class W>
class PlainRows {
 public:
  explicit PlainRows(int64_t column) : begin_(column * static_cast<int64_t>(sizeof(W))) {}

  static constexpr int64_t bytes(int blocks) { return blocks * kBlock * static_cast<int64_t>(sizeof(W)); }

  template <int kBlocks>
  ROWWISE_INLINE void fetch_row(int64_t at) const {
    fetch(at + begin_, bytes(kBlocks));
  }

  // The row at an address, in blocks.
  struct Row {
    const W* x;
    ROWWISE_INLINE Block load(int b) const { return Block::load(x + b * kBlock); }
    ROWWISE_INLINE Block load_head(int b, int n) const { return Block::load_head(x + b * kBlock, n); }
  };
  ROWWISE_INLINE Row row(int64_t at) const { return {reinterpret_cast<const W*>(static_cast<uintptr_t>(at + begin_))}; }

 private:
  int64_t begin_;  // bytes from the begin of a row
};

// Columns [column, column + 16 * kBlocks (+ tail)) of the bags of a range. kTail: the last block has `tail` < 16.
template <class Rows, int kBlocks, bool kTail, bool kWeighted>
void pool_columns(const Batch& batch, const Range& range, const Chosen& chosen, int64_t column, int tail) {
  const Slot& slot = batch.slots[range.slot];
  const Bags bags{slot.offsets, batch.wide_offsets};
  const Rows rows(column);
  const int64_t* at = chosen.at;
  // Here, since what is stored may be any memory, as far as compilers know.
  const int64_t* const divisors = slot.divisors;
  const bool is_mean = slot.pooling == Pooling::mean;
  const int64_t stride = slot.stride, end_of_range = range.end;
  const Float dtype = batch.rows_dtype;
  void* const output = slot.rows;
  const float* scales = kWeighted ? slot.sample_weights + chosen.first : nullptr;
  constexpr int kAll = kBlocks + (kTail ? 1 : 0);
  constexpr int64_t ahead = rows_ahead(Rows::bytes(kAll));
  for (int64_t i = 0; i < ahead && i < chosen.ahead; ++i) rows.template fetch_row<kAll>(at[i]);
  int64_t i = 0;
  for (int64_t bag = range.begin; bag < end_of_range; ++bag) {
    const int64_t begin = i, end = bags.end(bag) - chosen.first;
    int64_t count = end - begin;
    Block sum[kAll];
    for (int b = 0; b < kAll; ++b) sum[b] = Block::fill(0);
    for (; i < end; ++i) {
      rows.template fetch_row<kAll>(at[i + ahead]);
      if (__builtin_expect(at[i] < 0, 0)) {
        count -= at[i] == kNoRow;
        continue;
      }
      const auto x = rows.row(at[i]);
      const float scale = kWeighted ? scales[i] : 1.0f;
      for (int b = 0; b < kAll; ++b) {
        const Block block = kTail && b == kBlocks ? x.load_head(b, tail) : x.load(b);
        sum[b] = sum[b] + (kWeighted ? block * scale : block);
      }
    }
    if (divisors) count = divisors[bag];
    if (is_mean && count > 1) {
      for (int b = 0; b < kAll; ++b) sum[b] = sum[b] / static_cast<float>(count);
    }
    const int64_t y = bag * stride + column;
    if (dtype == Float::f32 && !kTail) {
      for (int b = 0; b < kAll; ++b) sum[b].store(static_cast<float*>(output) + y + b * kBlock);
      continue;
    }
    for (int b = 0; b < kAll; ++b)
      store_as(sum[b], dtype, output, y + b * kBlock, kTail && b == kBlocks ? tail : kBlock);
  }
}

template <class Rows, int kBlocks, bool kWeighted>
void pool_rest(const Batch& batch, const Range& range, const Chosen& chosen, int64_t column, int tail) {
  if (tail) {
    pool_columns<Rows, kBlocks, true, kWeighted>(batch, range, chosen, column, tail);
  } else if constexpr (kBlocks > 0) {
    pool_columns<Rows, kBlocks, false, kWeighted>(batch, range, chosen, column, 0);
  }
}

template <class Rows, bool kWeighted>
void pool(const Batch& batch, const Range& range, Chosen chosen) {
  const int64_t dim = batch.tables[batch.slots[range.slot].table].dim;
  int64_t column = 0;
  for (; dim - column >= kBlock * kMaxBlocks; column += kBlock * kMaxBlocks) {
    pool_columns<Rows, kMaxBlocks, false, kWeighted>(batch, range, chosen, column, 0);
    chosen.ahead = kMostAhead;  // of these columns nothing has been fetched
  }
  const int tail = static_cast<int>((dim - column) % kBlock);
  switch ((dim - column) / kBlock) {
    case 0: return pool_rest<Rows, 0, kWeighted>(batch, range, chosen, column, tail);
    case 1: return pool_rest<Rows, 1, kWeighted>(batch, range, chosen, column, tail);
    case 2: return pool_rest<Rows, 2, kWeighted>(batch, range, chosen, column, tail);
    case 3: return pool_rest<Rows, 3, kWeighted>(batch, range, chosen, column, tail);
    case 4: return pool_rest<Rows, 4, kWeighted>(batch, range, chosen, column, tail);
    case 5: return pool_rest<Rows, 5, kWeighted>(batch, range, chosen, column, tail);
    case 6: return pool_rest<Rows, 6, kWeighted>(batch, range, chosen, column, tail);
    case 7: return pool_rest<Rows, 7, kWeighted>(batch, range, chosen, column, tail);
  }
}

template <class Rows>
void pool(const Batch& batch, const Range& range, const Chosen& chosen) {
  if (batch.slots[range.slot].sample_weights)
    pool<Rows, true>(batch, range, chosen);
  else
    pool<Rows, false>(batch, range, chosen);
}

// Refuses bags of other than one id where nothing is pooled.
inline void check_bags(const Batch& batch, const Range& range, Outcome& outcome) {
  const Slot& slot = batch.slots[range.slot];
  const Bags bags{slot.offsets, batch.wide_offsets};
  for (int64_t bag = range.begin; slot.pooling == Pooling::none && bag < range.end; ++bag) {
    const int64_t count = bags.end(bag) - bags.begin(bag);
    if (count != 1) outcome.refuse(Failure::bag, range.slot, bag, count);
  }
}

// Bags a range: small enough to share out evenly, large enough that fetching ahead gets going.
inline int64_t bags_a_range(const Batch& batch, int64_t bags, int64_t positions) {
  const int64_t least = 64;
  if (bags <= least) return least;  // quickly: a small look-up takes little longer than the divisions below
  const int64_t pieces = static_cast<int64_t>(batch.threads) * 8 / (batch.num_slots ? batch.num_slots : 1) + 1;
  const int64_t share = (bags + pieces - 1) / pieces;
  const int64_t longest = positions > 0 ? kPiece * bags / positions + 1 : bags;
  const int64_t size = share < longest ? share : longest;
  return size > least ? size : least;
}

// Some ranges that a thread does one behind the other, and what becomes of each.
struct Piece {
  const Range* ranges;
  Outcome* outcomes;
  int64_t count;
};

// The bags of all slots in ranges, and these in pieces.
class Ranges {
 public:
  // `tables.work(t)` are the bytes that are moved for a bag or an id of table t.
  template <class Tables>
  Ranges(const Batch& batch, const Tables& tables) : batch_(batch), count_(count(batch)), scratch_(room(count_)) {
    ranges_ = reinterpret_cast<Range*>(scratch_.data());
    outcomes_ = reinterpret_cast<Outcome*>(ranges_ + count_);
    begins_ = reinterpret_cast<int64_t*>(outcomes_ + count_);
    int64_t n = 0, bytes = 0, work = 0;
    for (int64_t s = 0; s < batch.num_slots; ++s) {
      const Slot& slot = batch.slots[s];
      const Bags bags{slot.offsets, batch.wide_offsets};
      const int64_t positions = bags.begin(slot.bags) - bags.begin(0), size = bags_a_range(batch, slot.bags, positions);
      work += positions + slot.bags;
      bytes += (positions + slot.bags) * tables.work(slot.table);
      for (int64_t begin = 0; begin < slot.bags; begin += size, ++n) {
        ranges_[n] = Range{s, begin, begin + size < slot.bags ? begin + size : slot.bags};
        outcomes_[n] = Outcome{};
      }
    }
    threads_ = bytes < kSmallWork ? 1 : batch.threads;
    form_pieces(work);
  }

  int threads() const { return threads_; }
  int64_t most_positions() const { return most_positions_; }  // of a piece

  // Calls task(piece, thread) for each of them.
  template <class Task>
  ROWWISE_INLINE Failure run(int64_t* out_of_range, const Task& task) const {
    in_pieces(threads_, pieces_, [&](int64_t p, int thread) {
      const int64_t begin = begins_[p];
      task(Piece{ranges_ + begin, outcomes_ + begin, begins_[p + 1] - begin}, thread);
    });
    Failure failure;
    for (int64_t i = 0; i < count_; ++i) {  // in order of slot and bag, so the first failure is the same every time
      out_of_range[batch_.slots[ranges_[i].slot].table] += outcomes_[i].out_of_range;
      if (failure.kind == Failure::nothing) failure = outcomes_[i].failure;
    }
    return failure;
  }

 private:
  static int64_t count(const Batch& batch) {
    int64_t n = 0;
    for (int64_t s = 0; s < batch.num_slots; ++s) {
      const Slot& slot = batch.slots[s];
      const Bags bags{slot.offsets, batch.wide_offsets};
      const int64_t size = bags_a_range(batch, slot.bags, bags.begin(slot.bags) - bags.begin(0));
      n += slot.bags <= size ? slot.bags > 0 : (slot.bags + size - 1) / size;
    }
    return n;
  }
  static size_t room(int64_t count) {
    return static_cast<size_t>(count) * (sizeof(Range) + sizeof(Outcome) + sizeof(int64_t)) + sizeof(int64_t);
  }

  // Makes pieces of about the same work (bags and ids), as many for each thread.
  void form_pieces(int64_t work) {
    const int64_t share = work / (8 * threads_) + 1, size = share < kLeastPiece ? kLeastPiece : share < kPiece ? share : kPiece;
    const int64_t most = threads_ == 1 ? work / kPiece + 1 : ((work + size - 1) / size + threads_ - 1) / threads_ * threads_;
    int64_t done = 0, positions = 0, last = -1;
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t piece = most == 1 ? 0 : done * most / work, length = positions_of(batch_, ranges_[i]);
      if (piece != last) {
        begins_[pieces_++] = i;
        positions = 0;
      }
      last = piece;
      done += length + ranges_[i].end - ranges_[i].begin;
      positions += length;
      most_positions_ = positions > most_positions_ ? positions : most_positions_;
    }
    begins_[pieces_] = count_;
  }

  const Batch& batch_;
  int64_t count_;
  Scratch scratch_;
  Range* ranges_;
  Outcome* outcomes_;
  int64_t* begins_;  // the first range of each piece
  int threads_ = 1;
  int64_t pieces_ = 0, most_positions_ = 0;
};

// Looks pieces up. `tables` says of each table how wide its rows are, and adds them up: see PlainTables.
template <class Tables>
struct LookUp {
  const Batch& batch;
  const Tables& tables;
  int64_t room;  // for positions, of a thread
  int64_t* memory;

  ROWWISE_INLINE void operator()(const Piece& piece, int thread) const {
    int64_t* const at = memory + thread * room;
    int64_t count = 0;
    for (int64_t r = 0; r < piece.count; ++r) {
      const Range& range = piece.ranges[r];
      check_bags(batch, range, piece.outcomes[r]);
      choose(batch, range, tables.row_bytes(batch.slots[range.slot].table), at + count, piece.outcomes[r]);
      count += positions_of(batch, range);
    }
    for (int64_t i = count; i < count + kMostAhead; ++i) at[i] = count ? at[count - 1] : 0;
    int64_t done = 0, fetched = 0;
    for (int64_t r = 0; r < piece.count; ++r) {
      const Range& range = piece.ranges[r];
      const Slot& slot = batch.slots[range.slot];
      const Bags bags{slot.offsets, batch.wide_offsets};
      const int64_t dim = batch.tables[slot.table].dim, bytes = tables.row_bytes(slot.table);
      tables.pool_range(range, Chosen{bags.begin(range.begin), bytes > fetched ? count - done : 0, at + done});
      fetched = dim > kBlock * kMaxBlocks ? 0 : bytes;  // of the rows behind it
      done += positions_of(batch, range);
    }
  }
};

template <class Tables>
Failure look_up(const Batch& batch, int64_t* out_of_range, const Tables& tables) {
  const Ranges ranges(batch, tables);
  const int64_t room = ranges.most_positions() + kMostAhead;
  Scratch memory(static_cast<size_t>(ranges.threads() * room) * sizeof(int64_t));
  return ranges.run(out_of_range, LookUp<Tables>{batch, tables, room, reinterpret_cast<int64_t*>(memory.data())});
}

// Tables of plain numbers. A family whose rows are something else brings a class with the same methods.
struct PlainTables {
  const Batch& batch;

  int64_t row_bytes(int64_t t) const { return batch.tables[t].dim * (batch.tables[t].dtype == Float::f32 ? 4 : 2); }
  int64_t work(int64_t t) const { return batch.tables[t].dim * 4; }
  void pool_range(const Range& range, const Chosen& chosen) const {
    switch (batch.tables[batch.slots[range.slot].table].dtype) {
      case Float::f32: return pool<PlainRows<float>>(batch, range, chosen);
      case Float::f16: return pool<PlainRows<Half>>(batch, range, chosen);
      case Float::bf16: return pool<PlainRows<Bfloat16>>(batch, range, chosen);
    }
  }
};

inline Failure forward(const Batch& batch, int64_t* out_of_range) { return look_up(batch, out_of_range, PlainTables{batch}); }

}  // namespace ROWWISE_ISA
}  // namespace rowwise
