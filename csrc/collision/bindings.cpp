// The collision family: tensors in, results in others.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "collision/collision.h"
#include "scratch.h"
#include "tensor.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

using Optional = std::optional<nb::object>;  // a tensor or None

// How DLPack names the types that kernels take here, and PyTorch.
template <class T>
struct Element;
template <>
struct Element<int64_t> {
  static constexpr uint8_t kind = 0;
  static constexpr const char* name = "torch.int64";
};
template <>
struct Element<uint32_t> {
  static constexpr uint8_t kind = 0;
  static constexpr const char* name = "torch.int32";
};
template <>
struct Element<double> {
  static constexpr uint8_t kind = 2;
  static constexpr const char* name = "torch.float64";
};
template <>
struct Element<uint8_t> {
  static constexpr uint8_t kind = 6;
  static constexpr const char* name = "torch.bool";
};

template <class T>
struct Elements {
  T* data;
  int64_t count;
};

enum class Shape { row, any };

// The elements of a tensor of one dimension, or of any number, one behind the other; `count` of them, if it is given.
template <class T>
Elements<T> elements(nb::handle tensor, const char* name, int64_t count = -1, Shape shape_wanted = Shape::row) {
  TensorView view;
  const bool readable = read_tensor(tensor, view);
  if (readable && view.kind == Element<T>::kind && view.bits == 8 * sizeof(T) && view.is_contiguous() &&
      (view.dims == 1 || shape_wanted == Shape::any) && (count < 0 || view.count() == count)) {
    return {static_cast<T*>(view.data), view.count()};
  }
  const std::string what = std::string("`") + name + "`", dtype = dtype_of(tensor);
  const std::string shape = nb::repr(nb::list(tensor.attr("shape"))).c_str();
  const std::string device = nb::str(nb::object(tensor.attr("device"))).c_str();
  REQUIRE(readable || device != "cpu", what + " should have memory. Received a tensor whose storage is empty.");
  if (count < 0) count = nb::cast<int64_t>(tensor.attr("numel")());
  refuse(what + " should be " + std::to_string(count) + " contiguous elements of " + Element<T>::name +
         " on the CPU. Received " + shape + " of " + dtype + " on " + device + ".");
}

template <class T>
T* memory(nb::handle tensor, const char* name, int64_t count) {
  return elements<T>(tensor, name, count).data;
}

template <class T>
T* memory_or_none(const Optional& tensor, const char* name, int64_t count) {
  return tensor ? memory<T>(*tensor, name, count) : nullptr;
}

// Ids that are looked for, of any shape, and where their rows are written.
Elements<int64_t> ids_of(nb::handle tensor, const char* name) { return elements<int64_t>(tensor, name, -1, Shape::any); }

int64_t* found_of(nb::handle tensor, int64_t count) { return elements<int64_t>(tensor, "found", count, Shape::any).data; }

// Searches read the id of the first row in place of none: where there are no rows, one that nobody has.
Index index_of(const Elements<int64_t>& ids, nb::handle entries, const char* name = "index") {
  static const int64_t no_id = 0;
  const int64_t size = index_size(ids.count);
  return {ids.count > 0 ? ids.data : &no_id, ids.count, memory<uint32_t>(entries, name, size), size};
}

Map map_of(nb::handle ids_tensor, nb::handle occupied, nb::handle entries) {
  const Elements<int64_t> ids = elements<int64_t>(ids_tensor, "ids");
  return {index_of(ids, entries), ids.data, memory<uint8_t>(occupied, "occupied", ids.count)};
}

History history_of(nb::handle ids_tensor, nb::handle counts, nb::handle last, nb::handle entries, nb::handle size) {
  const Elements<int64_t> ids = elements<int64_t>(ids_tensor, "history_ids");
  return {index_of(ids, entries, "history_index"), ids.data, memory<int64_t>(counts, "history_counts", ids.count),
          memory<int64_t>(last, "history_last", ids.count), memory<int64_t>(size, "history_size", 1)};
}

Metadata metadata_of(const Optional& counts, const Optional& last, int64_t rows) {
  return {memory_or_none<int64_t>(counts, "counts", rows), memory_or_none<int64_t>(last, "last", rows)};
}

Scores scores_of(nb::handle rows, nb::handle candidates, int64_t num_rows, int64_t count) {
  TensorView view;
  if (read_tensor(rows, view) && view.kind == Element<double>::kind) {
    return {memory<double>(rows, "scores", num_rows), memory<double>(candidates, "candidate_scores", count), true};
  }
  return {memory<int64_t>(rows, "scores", num_rows), memory<int64_t>(candidates, "candidate_scores", count), false};
}

// Rows that a kernel writes to.
Elements<int64_t> rows_of(nb::handle tensor, int64_t end) {
  const Elements<int64_t> rows = elements<int64_t>(tensor, "rows");
  for (int64_t i = 0; i < rows.count; ++i) {
    if (rows.data[i] < 0 || rows.data[i] >= end) {
      refuse_position("`rows` should be in [0, " + std::to_string(end) + "). Received " + std::to_string(rows.data[i]) +
                      ".");
    }
  }
  return rows;
}

}  // namespace

void bind_collision(nb::module_& m) {
  m.def("id_map_find", [](nb::handle ids, nb::handle entries, nb::handle wanted, int64_t missing, nb::handle found,
                          int threads) {
    const Index index = index_of(elements<int64_t>(ids, "ids"), entries);
    const Elements<int64_t> asked = ids_of(wanted, "wanted");
    int64_t* const rows = found_of(found, asked.count);
    nb::gil_scoped_release release;
    find_ids(index, asked.data, asked.count, missing, rows, threads);
  });
  m.def("id_map_count", [](nb::handle ids, nb::handle entries, const Optional& counts, const Optional& last, nb::handle history_ids,
                           nb::handle history_counts, nb::handle history_last, nb::handle history_entries,
                           nb::handle history_size, nb::handle totals, nb::handle batch, int64_t now, int64_t missing,
                           nb::handle found, int threads) {
    const Index index = index_of(elements<int64_t>(ids, "ids"), entries);
    const Metadata metadata = metadata_of(counts, last, index.rows);
    const History history = history_of(history_ids, history_counts, history_last, history_entries, history_size);
    int64_t* const sums = memory<int64_t>(totals, "totals", 3);
    const Elements<int64_t> came = ids_of(batch, "batch");
    int64_t* const rows = found_of(found, came.count);
    nb::gil_scoped_release release;
    count_ids(index, metadata, history, came.data, came.count, now, missing, rows, sums, threads);
  });
  m.def("id_map_replace", [](nb::handle ids, nb::handle occupied, nb::handle entries, nb::handle scores,
                             nb::handle candidates, nb::handle candidate_scores, nb::handle changed, nb::handle chosen,
                             nb::handle evicted, int threads) {
    const Map map = map_of(ids, occupied, entries);
    const Elements<int64_t> names = elements<int64_t>(candidates, "candidates");
    const Scores competing = scores_of(scores, candidate_scores, map.index.rows, names.count);
    const int64_t room = std::min(names.count, map.index.rows);
    Replacement done = {memory<int64_t>(changed, "changed", room), memory<int64_t>(chosen, "chosen", room),
                        memory<int64_t>(evicted, "evicted", room), 0, 0};
    nb::gil_scoped_release release;
    replace_ids(map, competing, names.data, names.count, &done, threads);
    return std::make_pair(done.num_rows, done.num_evicted);
  });
  // Of the candidates their ids, counts and last; of the history what is cleared.
  m.def("id_map_exchange", [](nb::handle ids, nb::handle occupied, nb::handle entries, const Optional& counts,
                              const Optional& last, nb::handle scores, nb::handle candidates, nb::handle candidate_counts,
                              nb::handle candidate_last, nb::handle candidate_scores, nb::handle history_entries,
                              nb::handle history_size, nb::handle batch, nb::handle found, int64_t missing,
                              nb::handle changed, int threads) {
    const Map map = map_of(ids, occupied, entries);
    const Metadata metadata = metadata_of(counts, last, map.index.rows);
    const Elements<int64_t> names = elements<int64_t>(candidates, "candidates");
    const Metadata brought = {memory<int64_t>(candidate_counts, "history_counts", names.count),
                              memory<int64_t>(candidate_last, "history_last", names.count)};
    const Scores competing = scores_of(scores, candidate_scores, map.index.rows, names.count);
    const Elements<uint32_t> forgotten = elements<uint32_t>(history_entries, "history_index");
    int64_t* const used = memory<int64_t>(history_size, "history_size", 1);
    const Elements<int64_t> asked = ids_of(batch, "batch");
    int64_t* const rows = found_of(found, asked.count);
    const int64_t room = std::min(names.count, map.index.rows);
    int64_t* const won = memory<int64_t>(changed, "changed", room);
    nb::gil_scoped_release release;
    const Scratch scratch((2 * static_cast<size_t>(room) + 1) * sizeof(int64_t));
    int64_t* const chosen = reinterpret_cast<int64_t*>(scratch.data());
    Replacement done = {won, chosen, chosen + room, 0, 0};
    replace_ids(map, competing, names.data, names.count, &done, threads);
    move_counts(done, brought, metadata);
    std::memset(forgotten.data, 0, static_cast<size_t>(forgotten.count) * sizeof(uint32_t));
    *used = 0;
    find_again(map, asked.data, asked.count, missing, rows, threads);
    return std::make_pair(done.num_rows, done.num_evicted);
  });
  m.def("id_map_insert", [](nb::handle ids, nb::handle occupied, nb::handle entries, nb::handle added,
                            nb::handle chosen) {
    const Map map = map_of(ids, occupied, entries);
    const Elements<int64_t> rows = rows_of(chosen, map.index.rows);
    const int64_t* const names = memory<int64_t>(added, "new", rows.count);
    nb::gil_scoped_release release;
    insert_ids(map, names, rows.data, rows.count);
  });
  m.def("id_map_erase", [](nb::handle ids, nb::handle occupied, nb::handle entries, nb::handle chosen) {
    const Map map = map_of(ids, occupied, entries);
    const Elements<int64_t> rows = rows_of(chosen, map.index.rows);
    nb::gil_scoped_release release;
    erase_rows(map, rows.data, rows.count);
  });
  m.def("id_map_rebuild", [](nb::handle ids, nb::handle entries, nb::handle chosen) {
    const Index index = index_of(elements<int64_t>(ids, "ids"), entries);
    const Elements<int64_t> rows = rows_of(chosen, index.rows);
    nb::gil_scoped_release release;
    rebuild_index(index, rows.data, rows.count);
  });
}

}  // namespace rowwise
