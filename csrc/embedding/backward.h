// The gradient of a table: collect (row, source) pairs, sort them by row, sum the gradient rows of each row, deliver.
//
// A task is one table, or, where tables are few, an interleaved part of its rows: the task reads all ids of the table
// and keeps its own. No two tasks share a row, and a row is summed in order of slot and position, so the result does
// not depend on the number of tasks or threads.
#pragma once

#include "embedding/forward.h"
#include "embedding/sort.h"
#include "embedding/update.h"
#include "scratch.h"

namespace rowwise {
namespace ROWWISE_ISA {

// The gradient rows of a table, numbered from 0 over its slots, `stride` floats apart: in place where that is possible
// and they are read about once, else copied, which packs what is read repeatedly into few pages (and, for mean pooling,
// divides by the size of the bag).
struct Sources {
  const float* rows = nullptr;
  int64_t stride = 0;
  bool in_place = false;
  int64_t count = 0;  // of rows
  int64_t ids = 0;    // over all slots of the table
  int64_t work = 0;   // rows to be read or written: of the ids, and of the whole table where all of it is updated
  bool scaled = false;
};

// The slots of each table that have a gradient, in order: with a thousand tables, nothing may go through all slots for
// each of them.
class SlotLists {
 public:
  explicit SlotLists(const Batch& batch)
      : memory_(static_cast<size_t>(batch.num_tables + batch.num_slots) * sizeof(int64_t) + 64),
        first_(reinterpret_cast<int64_t*>(memory_.data())),
        next_(first_ + batch.num_tables) {
    for (int64_t t = 0; t < batch.num_tables; ++t) first_[t] = -1;
    for (int64_t s = batch.num_slots - 1; s >= 0; --s) {
      const Slot& slot = batch.slots[s];
      if (slot.rows == nullptr) continue;
      next_[s] = first_[slot.table];
      first_[slot.table] = s;
    }
  }

  int64_t first(int64_t table) const { return first_[table]; }  // -1: none
  int64_t after(int64_t slot) const { return next_[slot]; }

 private:
  Scratch memory_;
  int64_t* first_;
  int64_t* next_;
};

inline Sources find_sources(const Batch& batch, const SlotLists& lists, int64_t table) {
  Sources found;
  int slots = 0;
  for (int64_t s = lists.first(table); s >= 0; s = lists.after(s)) {
    const Slot& slot = batch.slots[s];
    const Bags bags{slot.offsets, batch.wide_offsets};
    found.in_place = slots++ == 0 && batch.rows_dtype == Float::f32 && slot.pooling != Pooling::mean;
    found.rows = static_cast<const float*>(slot.rows);
    found.stride = slot.stride;
    found.count += slot.bags;
    found.ids += bags.begin(slot.bags) - bags.begin(0);
    found.scaled = found.scaled || slot.sample_weights != nullptr;
  }
  const int64_t dim = batch.tables[table].dim;
  if (found.stride != dim && found.ids > 2 * found.count) found.in_place = false;
  if (!found.in_place) found.stride = dim;
  return found;
}

ROWWISE_INLINE Block load_as(Float dtype, const void* x, int64_t at, int n) {
  switch (dtype) {
    case Float::f32: return load_block(static_cast<const float*>(x) + at, n);
    case Float::f16: return load_block(static_cast<const Half*>(x) + at, n);
    case Float::bf16: return load_block(static_cast<const Bfloat16*>(x) + at, n);
  }
  return Block::fill(0);
}

// What the rows of a bag are divided by: for a mean, the ids that have a row, in whichever shard.
inline int64_t divisor_of(const Slot& slot, const Table& table, const Ids& ids, const Bags& bags, int64_t bag) {
  if (slot.pooling != Pooling::mean) return 1;
  if (slot.divisors) return slot.divisors[bag];
  const int64_t begin = bags.begin(bag), end = bags.end(bag);
  int64_t count = end - begin;
  if (table.policy != Policy::ignore && table.policy != Policy::rows) return count;
  for (int64_t i = begin; i < end; ++i) count -= !is_in_range(table, ids[i]);
  return count;
}

inline void pack_sources(const Batch& batch, const SlotLists& lists, int64_t t, float* packed) {
  const Table& table = batch.tables[t];
  for (int64_t s = lists.first(t); s >= 0; s = lists.after(s)) {
    const Slot& slot = batch.slots[s];
    const Ids ids{slot.ids, batch.wide_ids};
    const Bags bags{slot.offsets, batch.wide_offsets};
    const char* rows = static_cast<const char*>(slot.rows);
    const int64_t element = batch.rows_dtype == Float::f32 ? 4 : 2;
    for (int64_t bag = 0; bag < slot.bags; ++bag, packed += table.dim) {
      const char* soon = rows + (bag + kAhead) * slot.stride * element;  // may lie behind the end: only a hint
      for (int64_t b = 0; b < table.dim * element; b += 64) __builtin_prefetch(soon + b, 0, 3);
      const int64_t count = divisor_of(slot, table, ids, bags, bag);
      for_blocks(table.dim, [&](int64_t c, int n) {
        Block block = load_as(batch.rows_dtype, slot.rows, bag * slot.stride + c, n);
        if (count > 1) block = block / static_cast<float>(count);
        store_block(block, packed + c, n);
      });
    }
  }
}

// The memory of a row that is written, and mostly read before: arrays of `dim` numbers a row, and of one.
struct Targets {
  const char* wide[3];
  int64_t bytes[3];  // a number
  int num_wide = 0;
  const float* narrow = nullptr;
  bool early = false;  // fetched while ids are collected, with the gradients: see kEarlyBytes

  ROWWISE_INLINE void fetch_row(int64_t row, int64_t dim) const {
    for (int t = 0; t < num_wide; ++t) fetch(wide[t], row * dim * bytes[t], dim * bytes[t]);
    __builtin_prefetch(narrow + row, 0, 2);
  }
  void add(const void* memory, int64_t bytes_a_number) {
    if (memory == nullptr) return;
    wide[num_wide] = static_cast<const char*>(memory);
    bytes[num_wide++] = bytes_a_number;
  }
};

// What so few ids read and write stays in the second cache until they are sorted. To fetch it while they are collected is
// early enough for tables of a few hundred ids: to fetch some entries ahead has hardly begun there when it ends.
constexpr int64_t kEarlyBytes = int64_t{1} << 18;

inline Targets find_targets(const Table& table, const Sink& sink) {
  Targets targets;
  const int64_t bytes = table.dtype == Float::f32 ? 4 : 2;
  targets.add(sink.dense, bytes);
  if (sink.optimizer == nullptr) return targets;
  const Step step(*sink.optimizer);
  // At a rate of 0 row-wise Adagrad leaves weights alone.
  if (step.o.rule != Rule::rowwise_adagrad || step.o.lr != 0) targets.add(table.weight, bytes);
  if (step.o.rule == Rule::rowwise_adagrad) {
    targets.narrow = step.o.first;
    return targets;
  }
  targets.add(step.o.first, 4);
  if (step.row_wise)
    targets.narrow = step.o.second;
  else
    targets.add(step.o.second, 4);
  return targets;
}

constexpr int kPartRows = 6;  // parts interleave by 64 rows: even under skew, yet with runs of neighbouring rows

inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Part {  // of the rows of a table
  int64_t table, part, parts;
};

// The entries of a part, in order of slot and position. Returns how many.
template <bool kFetch, class E>
int64_t collect(const Batch& batch, const SlotLists& lists, const Part& part, const Packing& packing,
                const Sources& sources, const Targets& targets, E* entries) {
  const Table& table = batch.tables[part.table];
  int64_t n = 0, first_source = 0;
  for (int64_t s = lists.first(part.table); s >= 0; s = lists.after(s)) {
    const Slot& slot = batch.slots[s];
    const Ids ids{slot.ids, batch.wide_ids};
    const Bags bags{slot.offsets, batch.wide_offsets};
    for (int64_t bag = 0; bag < slot.bags; ++bag) {
      for (int64_t i = bags.begin(bag), end = bags.end(bag); i < end; ++i) {
        const int64_t row = row_of(table, ids[i]);
        if (row < 0) continue;
        if (part.parts > 1 && ((row >> kPartRows) & (part.parts - 1)) != part.part) continue;
        if (kFetch) {
          targets.fetch_row(row, table.dim);
          fetch(sources.rows, (first_source + bag) * sources.stride * 4, table.dim * 4);
        }
        E& entry = entries[n++];
        entry.packed = packing.pack<decltype(entry.packed)>(row, first_source + bag);
        entry.set_factor(slot.sample_weights ? slot.sample_weights[i] : 1);
      }
    }
    first_source += slot.bags;
  }
  return n;
}

// Sorted entries, with one more behind them that has another row.
template <class E>
struct Sorted {
  const E* entries;
  int64_t count;
  Packing packing;

  ROWWISE_INLINE int64_t row(int64_t i) const { return packing.row(entries[i].packed); }
  ROWWISE_INLINE int64_t source(int64_t i) const { return packing.source(entries[i].packed); }
  ROWWISE_INLINE bool is_last(int64_t i) const {  // of its row
    return !packing.is_same_row(entries[i].packed, entries[i + 1].packed);
  }
  ROWWISE_INLINE int64_t ahead(int64_t i, int64_t distance) const {
    return i + distance < count ? i + distance : count - 1;
  }
};

template <class E>
Sorted<E> collect_sorted(const Batch& batch, const SlotLists& lists, const Part& part, const Packing& packing,
                         const Sources& sources, const Targets& targets, char* memory) {
  E* entries = reinterpret_cast<E*>(memory);
  const int64_t count = targets.early ? collect<true>(batch, lists, part, packing, sources, targets, entries)
                                      : collect<false>(batch, lists, part, packing, sources, targets, entries);
  entries = sort_by_row(packing, entries, entries + sources.ids + 1, count);
  if (count > 0) entries[count].packed = ~entries[count - 1].packed;
  return {entries, count, packing};
}

// The next rows of the entries from `begin` on, at most kRows; returns where their entries end. There is no branch on
// whether two entries are of one row, here and below: nothing could predict it.
template <class E>
ROWWISE_INLINE int64_t take_rows(const Sorted<E>& sorted, int64_t begin, Rows& rows) {
  int n = 0;
  int64_t i = begin;
  for (; i < sorted.count && n < kRows; ++i) {
    rows.row[n] = sorted.row(i);
    rows.end[n] = i + 1;
    n += sorted.is_last(i);
  }
  rows.count = n;
  rows.begin = begin;
  return i;
}

// `block`, or where a new row begins what every number can be added to and stays as it is: -0.
ROWWISE_INLINE Block unless_new(const Block& block, bool is_new) {
  const LanesBits kept = LanesBits{} - static_cast<uint32_t>(!is_new), sign = LanesBits{} + 0x80000000u;
  Block result;
  for (int p = 0; p < kParts; ++p) {
    const LanesBits bits = (reinterpret_cast<LanesBits>(block.part[p]) & kept) | (sign & ~kept);
    result.part[p] = reinterpret_cast<Lanes>(bits);
  }
  return result;
}

// Entries ahead, to the second cache and not to be written: see `fetch`.
constexpr int64_t kTargetsAhead = 64, kSourcesAhead = 32;

// Sums columns [column, column + 16 * kBlocks (+ tail)) of the gradients of the rows, each into its own place.
template <class E, int kBlocks, bool kTail>
void sum_columns(const Sorted<E>& sorted, const Sources& sources, const Targets& targets, const Rows& rows, int64_t column,
                 int tail) {
  constexpr int kAll = kBlocks + (kTail ? 1 : 0);
  const int64_t end = rows.end[rows.count - 1];
  float* y = rows.own + column;
  Block sum[kAll];
  for (int b = 0; b < kAll; ++b) sum[b] = Block::fill(-0.0f);
  for (int64_t i = rows.begin; i < end; ++i) {
    if (!targets.early) {
      const int64_t row = sorted.row(sorted.ahead(i, kTargetsAhead));
      for (int t = 0; t < targets.num_wide; ++t) {
        const char* target = targets.wide[t] + (row * rows.dim + column) * targets.bytes[t];
        for (int b = 0; b < kAll; ++b) __builtin_prefetch(target + b * 64, 0, 2);
      }
      if (column == 0) __builtin_prefetch(targets.narrow + row, 0, 2);
      const float* soon = sources.rows + sorted.source(sorted.ahead(i, kSourcesAhead)) * sources.stride + column;
      for (int b = 0; b < kAll; ++b) __builtin_prefetch(soon + b * kBlock, 0, 2);
    }
    const float* x = sources.rows + sorted.source(i) * sources.stride + column;
    const float factor = sorted.entries[i].factor();
    const bool is_last = sorted.is_last(i);
    for (int b = 0; b < kAll; ++b) {
      const int n = kTail && b == kBlocks ? tail : kBlock;
      const Block block = load_block(x + b * kBlock, n);
      sum[b] = sum[b] + (E::kScaled ? block * factor : block);
      store_block(sum[b], y + b * kBlock, n);
      sum[b] = unless_new(sum[b], is_last);
    }
    y += is_last ? rows.dim : 0;
  }
}

template <class E>
void sum_rows(const Sorted<E>& sorted, const Sources& sources, const Targets& targets, Rows& rows) {
  int64_t column = 0;
  const int tail = static_cast<int>(rows.dim % kBlock);
  for (; rows.dim - column >= 4 * kBlock; column += 4 * kBlock)
    sum_columns<E, 4, false>(sorted, sources, targets, rows, column, 0);
  switch ((rows.dim - column) / kBlock * 2 + (tail != 0)) {
    case 0: break;
    case 1: sum_columns<E, 0, true>(sorted, sources, targets, rows, column, tail); break;
    case 2: sum_columns<E, 1, false>(sorted, sources, targets, rows, column, 0); break;
    case 3: sum_columns<E, 1, true>(sorted, sources, targets, rows, column, tail); break;
    case 4: sum_columns<E, 2, false>(sorted, sources, targets, rows, column, 0); break;
    case 5: sum_columns<E, 2, true>(sorted, sources, targets, rows, column, tail); break;
    case 6: sum_columns<E, 3, false>(sorted, sources, targets, rows, column, 0); break;
    case 7: sum_columns<E, 3, true>(sorted, sources, targets, rows, column, tail); break;
  }
  for (int k = 0; k < rows.count; ++k) rows.grad[k] = rows.own + k * rows.dim;
}

// The rows of part `part` of `parts`, in order.
struct PartRows {
  int64_t part, parts;

  int64_t first() const { return part << kPartRows; }
  int64_t after(int64_t row) const {
    const int64_t next = row + 1, within = (int64_t{1} << kPartRows) - 1;
    return parts > 1 && (next & within) == 0 ? next + ((parts - 1) << kPartRows) : next;
  }
  // The end of the rows from `row` on that lie one behind the other, at most `end`.
  int64_t run_end(int64_t row, int64_t end) const {
    const int64_t stop = parts > 1 ? ((row >> kPartRows) + 1) << kPartRows : end;
    return stop < end ? stop : end;
  }
};

template <class W>
void write_grads(Sink& sink, const Rows& rows) {
  for (int k = 0; k < rows.count; ++k) {
    W* y = static_cast<W*>(sink.dense) + rows.row[k] * rows.dim;
    if (sink.rows != nullptr) {  // rows without columns have no memory, dense or not
      sink.rows[sink.count] = rows.row[k];
      y = static_cast<W*>(sink.values) + sink.count++ * rows.dim;
    }
    for_blocks(rows.dim, [&](int64_t c, int n) { store_block(load_block(rows.grad[k] + c, n), y + c, n); });
  }
}

// Updates the rows of a part with a gradient of zero that no id chose: those before `end`, from where it was last.
template <class W>
struct UnseenRows {
  const Step& step;
  W* weight;
  PartRows part;
  Rows rows;          // with room of its own
  const float* zero;
  int64_t next;

  void update(int64_t end) {
    while (next < end) {
      if (step.o.rule == Rule::adam) {
        const int64_t stop = part.run_end(next, end), at = next * rows.dim;
        update_adam_unseen(step, weight + at, step.o.first + at, step.o.second + at, (stop - next) * rows.dim);
        next = part.after(stop - 1);
        continue;
      }
      rows.row[rows.count] = next;
      rows.grad[rows.count++] = zero;
      if (rows.count == kRows) flush();
      next = part.after(next);
    }
  }
  void flush() {
    update_rows(step, weight, rows);
    rows.count = 0;
  }
};

// `scratch` has room for 2 * kRows + 2 rows.
template <class W, class E>
void reduce(const Table& table, Sink& sink, const Sorted<E>& sorted, const Sources& sources, const Targets& targets,
            PartRows part, float* scratch) {
  const int64_t dim = table.dim;
  W* weight = static_cast<W*>(table.weight);
  Rows rows(dim, scratch);
  if (sink.optimizer == nullptr) {
    for (int64_t i = 0; i < sorted.count;) {
      i = take_rows(sorted, i, rows);
      sum_rows(sorted, sources, targets, rows);
      write_grads<W>(sink, rows);
    }
    return;
  }
  const Step step(*sink.optimizer);
  float* zero = scratch + (2 * kRows + 1) * dim;
  const bool all_rows = updates_all_rows(step.o);
  UnseenRows<W> unseen{step, weight, part, Rows(dim, scratch + kRows * dim), zero, part.first()};
  for (int64_t c = 0; c < dim; ++c) zero[c] = 0;
  for (int64_t i = 0; i < sorted.count;) {
    i = take_rows(sorted, i, rows);
    sum_rows(sorted, sources, targets, rows);
    if (step.o.row_decay != 0) add_weights(step.o.row_decay, weight, rows);
    update_rows(step, weight, rows);
    if (!all_rows) continue;
    for (int k = 0; k < rows.count; ++k) {
      unseen.update(rows.row[k]);
      unseen.next = part.after(rows.row[k]);
    }
  }
  if (all_rows) unseen.update(table.rows), unseen.flush();
}

// Where rows may come in any order: pairs are returned in order, and all rows are updated by going through the table.
inline Packing packing_of(const Table& table, const Sink& sink, const Sources& sources) {
  const bool in_order = sink.rows != nullptr || (sink.optimizer != nullptr && updates_all_rows(*sink.optimizer));
  return Packing(table.rows, sources.count, in_order);
}

template <class E>
void run_part(const Batch& batch, const SlotLists& lists, const Part& part, Sink& sink, const Sources& sources,
              char* memory, float* scratch) {
  const Table& table = batch.tables[part.table];
  const Packing packing = packing_of(table, sink, sources);
  Targets targets = find_targets(table, sink);
  targets.early = sources.ids * table.dim * 4 * (1 + targets.num_wide) <= kEarlyBytes;
  const Sorted<E> sorted = collect_sorted<E>(batch, lists, part, packing, sources, targets, memory);
  const PartRows rows{part.part, part.parts};
  switch (table.dtype) {
    case Float::f32: return reduce<float>(table, sink, sorted, sources, targets, rows, scratch);
    case Float::f16: return reduce<Half>(table, sink, sorted, sources, targets, rows, scratch);
    case Float::bf16: return reduce<Bfloat16>(table, sink, sorted, sources, targets, rows, scratch);
  }
}

inline void run_part(const Batch& batch, const SlotLists& lists, const Part& part, Sink& sink, const Sources& sources,
                     char* memory, float* scratch) {
  const bool narrow = packing_of(batch.tables[part.table], sink, sources).bits() <= 32;
  if (narrow && !sources.scaled) return run_part<Entry<uint32_t>>(batch, lists, part, sink, sources, memory, scratch);
  if (narrow) return run_part<ScaledEntry<uint32_t>>(batch, lists, part, sink, sources, memory, scratch);
  if (!sources.scaled) return run_part<Entry<uint64_t>>(batch, lists, part, sink, sources, memory, scratch);
  return run_part<ScaledEntry<uint64_t>>(batch, lists, part, sink, sources, memory, scratch);
}

// Into how many parts (a power of two) the rows of a table are split: so many that every thread gets about four tasks.
// A sink that collects pairs has one writer, so that they come out in order of the rows.
inline int64_t parts_of(const Sink& sink, int64_t work, int64_t all_work, int threads) {
  if (threads == 1 || sink.rows != nullptr || work < 4096) return 1;
  int64_t parts = 1;
  while (parts < 64 && parts * all_work < work * threads * 4) parts *= 2;
  return parts;
}

inline void backward(const Batch& batch, Sink* sinks) {
  const SlotLists lists(batch);
  Scratch source_memory(static_cast<size_t>(batch.num_tables) * sizeof(Sources) + 64);
  Sources* sources = reinterpret_cast<Sources*>(source_memory.data());
  int64_t all_work = 0, most_ids = 0, most_dim = 0, packed_floats = 0, bytes = 0, num_parts = 0;
  for (int64_t t = 0; t < batch.num_tables; ++t) {
    sources[t] = sinks[t].active ? find_sources(batch, lists, t) : Sources{};
    const bool all_rows = sinks[t].active && sinks[t].optimizer != nullptr && updates_all_rows(*sinks[t].optimizer);
    sources[t].work = sources[t].ids + (all_rows ? batch.tables[t].rows : 0);
    all_work += sources[t].work;
    bytes += sources[t].work * batch.tables[t].dim * 4;
  }
  const int threads = bytes < kSmallWork ? 1 : batch.threads;
  for (int64_t t = 0; t < batch.num_tables; ++t) {
    if (sources[t].work == 0) continue;
    const int64_t dim = batch.tables[t].dim;
    most_ids = sources[t].ids > most_ids ? sources[t].ids : most_ids;
    most_dim = dim > most_dim ? dim : most_dim;
    num_parts += parts_of(sinks[t], sources[t].work, all_work, threads);
    if (!sources[t].in_place) packed_floats += aligned(sources[t].count * dim * 4) / 4;
  }
  const int64_t entries_bytes = aligned(2 * (most_ids + 1) * static_cast<int64_t>(sizeof(ScaledEntry<uint64_t>)));
  const int64_t thread_bytes = entries_bytes + aligned((2 * kRows + 2) * most_dim * 4);
  Scratch memory(static_cast<size_t>(threads * thread_bytes + packed_floats * 4 + 64));
  Scratch part_memory(static_cast<size_t>(num_parts) * sizeof(Part) + 64);
  Part* parts = reinterpret_cast<Part*>(part_memory.data());
  float* packed = reinterpret_cast<float*>(memory.data() + threads * thread_bytes);
  int64_t n = 0;
  for (int64_t t = 0; t < batch.num_tables; ++t) {
    if (sources[t].work == 0) continue;
    const int64_t count = parts_of(sinks[t], sources[t].work, all_work, threads);
    for (int64_t p = 0; p < count; ++p) parts[n++] = Part{t, p, count};
    if (!sources[t].in_place) {
      sources[t].rows = packed;
      packed += aligned(sources[t].count * batch.tables[t].dim * 4) / 4;
    }
  }
  in_pieces(threads, batch.num_tables, [&](int64_t t, int) {
    if (sources[t].ids != 0 && !sources[t].in_place) pack_sources(batch, lists, t, const_cast<float*>(sources[t].rows));
  });
  in_pieces(threads, num_parts, [&](int64_t i, int thread) {
    char* mine = memory.data() + thread * thread_bytes;
    run_part(batch, lists, parts[i], sinks[parts[i].table], sources[parts[i].table], mine,
             reinterpret_cast<float*>(mine + entries_bytes));
  });
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
