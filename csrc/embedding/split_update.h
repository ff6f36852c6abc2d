// An update by row-wise Adagrad of tables whose columns lie in several places, in two halves. The first finds the mean
// square of each row's gradient, over the columns that are here; who holds the others does the same, and their sum is what
// the second half goes by. Whoever has the same ids in the same bags has the same numbers in the same order.
//
// A row that one id chose has the gradient of a bag, which other rows share: numbers are those of all bags, then those of
// the rows that several ids chose. Where that would be no less than one a row, or where the weights of a row or of an id
// take part in its gradient, they are those of all rows.
#pragma once

#include <type_traits>

#include "embedding/backward.h"

namespace rowwise {
namespace ROWWISE_ISA {

inline int64_t entry_bytes(const Packing& packing, bool scaled) {
  if (packing.bits() <= 32) return scaled ? sizeof(ScaledEntry<uint32_t>) : sizeof(Entry<uint32_t>);
  return scaled ? sizeof(ScaledEntry<uint64_t>) : sizeof(Entry<uint64_t>);
}

inline Packing packing_of(const Table& table, const Sources& sources) { return Packing(table.rows, sources.count, false); }

// Finds how much memory the tables want, and which numbers each of them has.
inline size_t plan_split(const Batch& batch, const Sink* sinks, SplitTable* splits) {
  const SlotLists lists(batch);
  int64_t bytes = 0;
  for (int64_t t = 0; t < batch.num_tables; ++t) {
    SplitTable& split = splits[t];
    if (!sinks[t].active) continue;
    const Sources sources = find_sources(batch, lists, t);
    const Step step(*sinks[t].optimizer);
    split.bags = sources.count;
    split.ids = sources.ids;
    split.every_row = sources.scaled || sources.count >= sources.ids || step.o.row_decay != 0 || step.added_decay() != 0;
    split.memory = bytes;
    bytes += 2 * aligned((sources.ids + 1) * entry_bytes(packing_of(batch.tables[t], sources), sources.scaled));
    if (!sources.in_place) bytes += aligned(sources.count * batch.tables[t].dim * 4);
    split.found = bytes;
    bytes += aligned((split.every_row ? sources.ids : sources.count + sources.ids / 2) * 4);
  }
  return static_cast<size_t>(bytes);
}

// The entries that choose a row which others choose as well, in order.
template <class E>
Sorted<E> keep_repeated(const Sorted<E>& sorted, E* kept) {
  int64_t n = 0;
  bool first = true;  // of its row
  for (int64_t i = 0; i < sorted.count; ++i) {
    const bool last = sorted.is_last(i);
    kept[n] = sorted.entries[i];
    n += !(first && last);
    first = last;
  }
  if (n > 0) kept[n].packed = ~kept[n - 1].packed;
  return {kept, n, sorted.packing};
}

// Writes the mean square of the gradient of each row; returns behind the last.
template <class W, class E>
float* measure_rows(const Step& step, const Table& table, const Sorted<E>& sorted, const Sources& sources, float share,
                    float* found, float* scratch) {
  const W* weight = static_cast<const W*>(table.weight);
  const bool reads = step.o.row_decay != 0 || step.added_decay() != 0;
  Targets targets;
  if (reads) targets.add(weight, sizeof(W));
  Rows rows(table.dim, scratch);
  for (int64_t i = 0; i < sorted.count;) {
    i = take_rows(sorted, i, rows);
    sum_rows(sorted, sources, targets, rows);
    if (step.o.row_decay != 0) add_weights(step.o.row_decay, weight, rows);
    prepare_rows(step, weight, rows);
    float means[kRows];
    mean_squares(rows, means);
    for (int k = 0; k < rows.count; ++k) *found++ = means[k] * share;
  }
  return found;
}

// Writes the mean square of the gradient of each bag, as of a row that one id chose: its weights take no part.
template <class W>
float* measure_bags(const Step& step, const Table& table, const Sources& sources, float share, float* found, float* scratch) {
  Rows rows(table.dim, scratch);
  for (int64_t bag = 0; bag < sources.count; bag += rows.count) {
    rows.count = static_cast<int>(sources.count - bag < kRows ? sources.count - bag : kRows);
    for (int k = 0; k < rows.count; ++k) rows.row[k] = 0, rows.grad[k] = sources.rows + (bag + k) * sources.stride;
    prepare_rows(step, static_cast<const W*>(table.weight), rows);
    float means[kRows];
    mean_squares(rows, means);
    for (int k = 0; k < rows.count; ++k) *found++ = means[k] * share;
  }
  return found;
}

template <class W, class E>
void measure_table(const Step& step, const Table& table, const Sorted<E>& sorted, const Sources& sources, E* spare,
                   SplitTable& split, float* found, float* scratch) {
  float* end = found;
  if (split.every_row) {
    end = measure_rows<W>(step, table, sorted, sources, split.share, end, scratch);
  } else {
    end = measure_bags<W>(step, table, sources, split.share, end, scratch);
    end = measure_rows<W>(step, table, keep_repeated(sorted, spare), sources, split.share, end, scratch);
  }
  split.numbers = end - found;
}

// Updates the rows of a table by the means that are given.
template <class W, class E>
void update_table(const Table& table, const Sink& sink, const Sorted<E>& sorted, const Sources& sources,
                  const SplitTable& split, const float* given, float* scratch) {
  const Step step(*sink.optimizer);
  W* weight = static_cast<W*>(table.weight);
  const Targets targets = find_targets(table, sink);
  Rows rows(table.dim, scratch);
  const float* of_rows = split.every_row ? given : given + split.bags;
  for (int64_t i = 0; i < sorted.count;) {
    i = take_rows(sorted, i, rows);
    sum_rows(sorted, sources, targets, rows);
    if (step.o.row_decay != 0) add_weights(step.o.row_decay, weight, rows);
    prepare_rows(step, weight, rows);
    float means[kRows];
    int64_t begin = rows.begin;
    for (int k = 0; k < rows.count; ++k) {
      const bool of_bag = !split.every_row && rows.end[k] == begin + 1;
      means[k] = *(of_bag ? given + sorted.source(begin) : of_rows);
      of_rows += !of_bag;
      begin = rows.end[k];
    }
    update_rowwise_adagrad(step, weight, rows, means);
  }
}

// The entries of a table, which the first half sorts and the second finds sorted.
template <class E>
struct SplitEntries {
  E* entries;
  E* spare;
};

template <class E>
SplitEntries<E> entries_of(const SplitTable& split, int64_t first_bytes, char* memory) {
  E* one = reinterpret_cast<E*>(memory + split.memory);
  E* other = reinterpret_cast<E*>(memory + split.memory + first_bytes);
  return split.swapped ? SplitEntries<E>{other, one} : SplitEntries<E>{one, other};
}

template <class E>
void run_half(const Batch& batch, const SlotLists& lists, int64_t t, const Sink& sink, SplitTable& split, Sources sources,
              char* memory, const float* given, float* scratch) {
  const Table& table = batch.tables[t];
  const Packing packing = packing_of(table, sources);
  const int64_t bytes = aligned((sources.ids + 1) * static_cast<int64_t>(sizeof(E)));
  if (!sources.in_place) sources.rows = reinterpret_cast<const float*>(memory + split.memory + 2 * bytes);
  if (given == nullptr) {
    if (!sources.in_place) pack_sources(batch, lists, t, const_cast<float*>(sources.rows));
    split.swapped = false;
    const SplitEntries<E> mine = entries_of<E>(split, bytes, memory);
    split.count = collect<false>(batch, lists, Part{t, 0, 1}, packing, sources, Targets{}, mine.entries);
    split.swapped = sort_by_row(packing, mine.entries, mine.spare, split.count) != mine.entries;
  }
  const SplitEntries<E> mine = entries_of<E>(split, bytes, memory);
  if (split.count > 0) mine.entries[split.count].packed = ~mine.entries[split.count - 1].packed;
  const Sorted<E> sorted{mine.entries, split.count, packing};
  const auto run = [&](auto* weight) {
    using W = std::remove_pointer_t<decltype(weight)>;
    if (given != nullptr) return update_table<W>(table, sink, sorted, sources, split, given, scratch);
    float* found = reinterpret_cast<float*>(memory + split.found);
    measure_table<W>(Step(*sink.optimizer), table, sorted, sources, mine.spare, split, found, scratch);
  };
  switch (table.dtype) {
    case Float::f32: return run(static_cast<float*>(nullptr));
    case Float::f16: return run(static_cast<Half*>(nullptr));
    case Float::bf16: return run(static_cast<Bfloat16*>(nullptr));
  }
}

// Both halves: the first, where no numbers are given.
inline void run_split(const Batch& batch, const Sink* sinks, SplitTable* splits, char* memory, const float* given) {
  const SlotLists lists(batch);
  int64_t bytes = 0, most_dim = 0;
  for (int64_t t = 0; t < batch.num_tables; ++t) {
    if (!sinks[t].active) continue;
    bytes += splits[t].ids * batch.tables[t].dim * 4;
    most_dim = batch.tables[t].dim > most_dim ? batch.tables[t].dim : most_dim;
  }
  const int threads = bytes < kSmallWork ? 1 : batch.threads;
  const int64_t thread_floats = aligned((kRows + 1) * most_dim * 4) / 4;
  Scratch scratch(static_cast<size_t>(threads * thread_floats * 4 + 64));
  in_pieces(threads, batch.num_tables, [&](int64_t t, int thread) {
    if (!sinks[t].active) return;
    const Sources sources = find_sources(batch, lists, t);
    float* mine = reinterpret_cast<float*>(scratch.data()) + thread * thread_floats;
    const float* numbers = given == nullptr ? nullptr : given + splits[t].first;
    const bool narrow = packing_of(batch.tables[t], sources).bits() <= 32;
    const auto run = [&](auto* entries) {
      using E = std::remove_pointer_t<decltype(entries)>;
      run_half<E>(batch, lists, t, sinks[t], splits[t], sources, memory, numbers, mine);
    };
    if (narrow && !sources.scaled) return run(static_cast<Entry<uint32_t>*>(nullptr));
    if (narrow) return run(static_cast<ScaledEntry<uint32_t>*>(nullptr));
    if (!sources.scaled) return run(static_cast<Entry<uint64_t>*>(nullptr));
    return run(static_cast<ScaledEntry<uint64_t>*>(nullptr));
  });
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
