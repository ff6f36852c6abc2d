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

inline Sources find_sources(const Batch& batch, int64_t table) {
  Sources found;
  int slots = 0;
  for (int64_t s = 0; s < batch.num_slots; ++s) {
    const Slot& slot = batch.slots[s];
    if (slot.table != table || slot.rows == nullptr) continue;
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

inline void pack_sources(const Batch& batch, int64_t t, float* packed) {
  const Table& table = batch.tables[t];
  for (int64_t s = 0; s < batch.num_slots; ++s) {
    const Slot& slot = batch.slots[s];
    if (slot.table != t || slot.rows == nullptr) continue;
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

constexpr int kPartRows = 6;  // parts interleave by 64 rows: even under skew, yet with runs of neighbouring rows

template <class Entry>
ROWWISE_INLINE void set_scale(Entry&, const Slot&, int64_t) {}
template <>
ROWWISE_INLINE void set_scale(NarrowScaledEntry& e, const Slot& slot, int64_t i) {
  e.scale = slot.sample_weights ? slot.sample_weights[i] : 1;
}
template <>
ROWWISE_INLINE void set_scale(WideScaledEntry& e, const Slot& slot, int64_t i) {
  e.scale = slot.sample_weights ? slot.sample_weights[i] : 1;
}

// The pairs of part `part` of `parts` of table t, in order of slot and position. Returns how many.
template <class Entry>
int64_t collect(const Batch& batch, int64_t t, int64_t part, int64_t parts, Entry* entries) {
  const Table& table = batch.tables[t];
  int64_t n = 0, first_source = 0;
  for (int64_t s = 0; s < batch.num_slots; ++s) {
    const Slot& slot = batch.slots[s];
    if (slot.table != t || slot.rows == nullptr) continue;
    const Ids ids{slot.ids, batch.wide_ids};
    const Bags bags{slot.offsets, batch.wide_offsets};
    for (int64_t bag = 0; bag < slot.bags; ++bag) {
      for (int64_t i = bags.begin(bag), end = bags.end(bag); i < end; ++i) {
        const int64_t row = row_of(table, ids[i]);
        if (row < 0) continue;
        if (parts > 1 && ((row >> kPartRows) & (parts - 1)) != part) continue;
        Entry entry;
        entry.row = static_cast<decltype(entry.row)>(row);
        entry.source = static_cast<decltype(entry.source)>(first_source + bag);
        set_scale(entry, slot, i);
        entries[n++] = entry;
      }
    }
    first_source += slot.bags;
  }
  return n;
}

template <class W>
ROWWISE_INLINE void prefetch_target(const Table& table, const Sink& sink, const Step* step, int64_t row) {
  const int64_t dim = table.dim;
  if (sink.optimizer) {
    const char* w = reinterpret_cast<const char*>(static_cast<const W*>(table.weight) + row * dim);
    for (int64_t b = 0; b < dim * static_cast<int64_t>(sizeof(W)); b += 64) __builtin_prefetch(w + b, 1, 3);
    const Optimizer& o = *sink.optimizer;
    const int64_t first = o.rule == Rule::rowwise_adagrad ? 1 : dim, second = step->row_wise ? 1 : dim;
    if (o.first)
      for (int64_t c = 0; c < first; c += 16) __builtin_prefetch(o.first + row * first + c, 1, 3);
    if (o.second)
      for (int64_t c = 0; c < second; c += 16) __builtin_prefetch(o.second + row * second + c, 1, 3);
  } else if (sink.dense) {
    const char* y = reinterpret_cast<const char*>(static_cast<const W*>(sink.dense) + row * dim);
    for (int64_t b = 0; b < dim * static_cast<int64_t>(sizeof(W)); b += 64) __builtin_prefetch(y + b, 1, 3);
  }
}

template <class W>
ROWWISE_INLINE void write_grad(const Table& table, Sink& sink, int64_t row, const float* g) {
  W* y;
  if (sink.dense) {
    y = static_cast<W*>(sink.dense) + row * table.dim;
  } else {
    sink.rows[sink.count] = row;
    y = static_cast<W*>(sink.values) + sink.count++ * table.dim;
  }
  for_blocks(table.dim, [&](int64_t c, int n) { store_block(load_block(g + c, n), y + c, n); });
}

// The summed gradient of the row of entries[i]; `next` is set behind its last entry. May point into the sources.
template <class Entry>
ROWWISE_INLINE const float* sum_row(const Entry* entries, int64_t count, int64_t i, const Sources& sources, int64_t dim,
                                    float* sum, int64_t* next) {
  const auto row = entries[i].row;
  const float* g = sources.rows + static_cast<int64_t>(entries[i].source) * sources.stride;
  constexpr bool kScaled = sizeof(Entry) == sizeof(NarrowScaledEntry) || sizeof(Entry) == sizeof(WideScaledEntry);
  int64_t j = i + 1;
  if (j == count || entries[j].row != row) {
    *next = j;
    if (!kScaled) return g;
  }
  const float scale = scale_of(entries[i]);
  for_blocks(dim, [&](int64_t c, int n) {
    const Block block = load_block(g + c, n);
    store_block(kScaled ? block * scale : block, sum + c, n);
  });
  for (; j < count && entries[j].row == row; ++j) {
    const float* more = sources.rows + static_cast<int64_t>(entries[j].source) * sources.stride;
    const float factor = scale_of(entries[j]);
    for_blocks(dim, [&](int64_t c, int n) {
      const Block block = load_block(more + c, n);
      store_block(load_block(sum + c, n) + (kScaled ? block * factor : block), sum + c, n);
    });
  }
  *next = j;
  return sum;
}

template <class Entry>
ROWWISE_INLINE void prefetch_source(const Sources& sources, const Entry& entry, int64_t dim) {
  const float* source = sources.rows + static_cast<int64_t>(entry.source) * sources.stride;
  for (int64_t c = 0; c < dim; c += 16) __builtin_prefetch(source + c, 0, 3);
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

// Adds `factor` times the weights of a row to its gradient, which is written to `out` (may be `g`).
template <class W>
ROWWISE_INLINE const float* add_weights(const W* w, const float* g, float factor, float* out, int64_t dim) {
  for_blocks(dim, [&](int64_t c, int n) {
    store_block(load_block(g + c, n) + load_block(w + c, n) * factor, out + c, n);
  });
  return out;
}

// `scratch` has room for kRows + 2 rows.
template <class W, class Entry>
void reduce(const Table& table, Sink& sink, const Entry* entries, int64_t count, const Sources& sources, PartRows part,
            float* scratch) {
  constexpr int64_t kTargetsAhead = kRows, kSourcesAhead = 8;
  const int64_t dim = table.dim;
  alignas(Step) char room[sizeof(Step)];
  const Step* step = sink.optimizer ? new (room) Step(*sink.optimizer) : nullptr;
  Rows<W> rows;
  rows.table = static_cast<W*>(table.weight);
  rows.dim = dim;
  rows.own = scratch;
  rows.spare = scratch + kRows * dim;
  float* zero = scratch + (kRows + 1) * dim;
  int64_t unseen = table.rows;  // the next row to be updated without a gradient
  if (step != nullptr && updates_all_rows(step->o)) {
    unseen = part.first();
    for (int64_t c = 0; c < dim; ++c) zero[c] = 0;
  }
  const auto update = [&](int64_t row, const float* g) {
    rows.row[rows.count] = row;
    rows.grad[rows.count++] = g;
    if (rows.count == kRows) update_rows(*step, rows);
  };
  const auto update_unseen = [&](int64_t end) {
    while (unseen < end) {
      if (step->o.rule != Rule::adam) {
        update(unseen, zero);
        unseen = part.after(unseen);
        continue;
      }
      const int64_t stop = part.run_end(unseen, end), at = unseen * dim;
      update_adam_unseen(*step, rows.table + at, step->o.first + at, step->o.second + at, (stop - unseen) * dim);
      unseen = part.after(stop - 1);
    }
  };
  int64_t targets = 0, fetched = 0;  // entries whose targets and sources have been asked for
  for (int64_t i = 0, next = 0; i < count; i = next) {
    const int64_t row = static_cast<int64_t>(entries[i].row);
    for (; targets < count && targets < i + kTargetsAhead; ++targets) {
      if (targets == 0 || entries[targets].row != entries[targets - 1].row)
        prefetch_target<W>(table, sink, step, static_cast<int64_t>(entries[targets].row));
    }
    for (; fetched < count && fetched < i + kSourcesAhead; ++fetched) prefetch_source(sources, entries[fetched], dim);
    if (unseen < table.rows) {
      update_unseen(row);
      unseen = part.after(row);
    }
    const float* g = sum_row(entries, count, i, sources, dim, rows.own + rows.count * dim, &next);
    if (step == nullptr) {
      write_grad<W>(table, sink, row, g);
      continue;
    }
    if (step->o.row_decay != 0) {
      const float factor = step->o.row_decay * static_cast<float>(next - i);
      g = add_weights(rows.table + row * dim, g, factor, rows.own + rows.count * dim, dim);
    }
    update(row, g);
  }
  update_unseen(table.rows);
  if (step != nullptr) update_rows(*step, rows);
}

struct Part {
  int64_t table, part, parts;
};

template <class Entry>
void run_part(const Batch& batch, const Part& part, Sink& sink, const Sources& sources, char* memory, float* scratch) {
  const Table& table = batch.tables[part.table];
  Entry* entries = reinterpret_cast<Entry*>(memory);
  const int64_t count = collect(batch, part.table, part.part, part.parts, entries);
  const Entry* sorted = sort_by_row(entries, entries + sources.ids, count, static_cast<uint64_t>(table.rows));
  const PartRows rows{part.part, part.parts};
  switch (table.dtype) {
    case Float::f32: return reduce<float>(table, sink, sorted, count, sources, rows, scratch);
    case Float::f16: return reduce<Half>(table, sink, sorted, count, sources, rows, scratch);
    case Float::bf16: return reduce<Bfloat16>(table, sink, sorted, count, sources, rows, scratch);
  }
}

inline void run_part(const Batch& batch, const Part& part, Sink& sink, const Sources& sources, char* memory, float* scratch) {
  const Table& table = batch.tables[part.table];
  const int64_t most = int64_t{1} << 32;
  const bool narrow = table.rows <= most && sources.count <= most;
  if (narrow && !sources.scaled) return run_part<NarrowEntry>(batch, part, sink, sources, memory, scratch);
  if (narrow) return run_part<NarrowScaledEntry>(batch, part, sink, sources, memory, scratch);
  if (!sources.scaled) return run_part<WideEntry>(batch, part, sink, sources, memory, scratch);
  return run_part<WideScaledEntry>(batch, part, sink, sources, memory, scratch);
}

// Into how many parts (a power of two) the rows of a table are split: so many that every thread gets about four tasks.
// A sink that collects pairs has one writer, so that they come out in order of the rows.
inline int64_t parts_of(const Sink& sink, int64_t work, int64_t all_work, int threads) {
  if (threads == 1 || sink.rows != nullptr || work < 4096) return 1;
  int64_t parts = 1;
  while (parts < 64 && parts * all_work < work * threads * 4) parts *= 2;
  return parts;
}

inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

inline void backward(const Batch& batch, Sink* sinks) {
  Scratch source_memory(static_cast<size_t>(batch.num_tables) * sizeof(Sources) + 64);
  Sources* sources = reinterpret_cast<Sources*>(source_memory.data());
  int64_t all_work = 0, most_ids = 0, most_dim = 0, packed_floats = 0, bytes = 0, num_parts = 0;
  for (int64_t t = 0; t < batch.num_tables; ++t) {
    sources[t] = sinks[t].active ? find_sources(batch, t) : Sources{};
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
  const int64_t entries_bytes = aligned(2 * most_ids * static_cast<int64_t>(sizeof(WideScaledEntry)));
  const int64_t thread_bytes = entries_bytes + aligned((kRows + 2) * most_dim * 4);
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
    if (sources[t].ids != 0 && !sources[t].in_place) pack_sources(batch, t, const_cast<float*>(sources[t].rows));
  });
  in_pieces(threads, num_parts, [&](int64_t i, int thread) {
    char* mine = memory.data() + thread * thread_bytes;
    run_part(batch, parts[i], sinks[parts[i].table], sources[parts[i].table], mine,
             reinterpret_cast<float*>(mine + entries_bytes));
  });
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
