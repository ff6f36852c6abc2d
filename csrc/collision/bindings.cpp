// The collision family: addresses in, results behind other addresses.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <cstring>

#include "address.h"
#include "collision/collision.h"
#include "scratch.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

Index index_at(int64_t ids, int64_t rows, int64_t entries, int64_t size) {
  return {at<const int64_t>(ids), rows, at<uint32_t>(entries), size};
}

Map map_at(int64_t ids, int64_t rows, int64_t entries, int64_t size, int64_t occupied) {
  return {index_at(ids, rows, entries, size), at<int64_t>(ids), at<uint8_t>(occupied)};
}

}  // namespace

namespace {

// Rows that a kernel writes to, `count` of them.
const int64_t* rows_at(int64_t address, int64_t count, int64_t end) {
  const int64_t* const rows = at<const int64_t>(address);
  for (int64_t i = 0; i < count; ++i) {
    if (rows[i] < 0 || rows[i] >= end) {
      refuse_position("`rows` should be in [0, " + std::to_string(end) + "). Received " + std::to_string(rows[i]) + ".");
    }
  }
  return rows;
}

}  // namespace

void bind_collision(nb::module_& m) {
  m.def("id_map_find", [](int64_t ids, int64_t rows, int64_t entries, int64_t size, int64_t wanted, int64_t count,
                          int64_t missing, int64_t found, int threads) {
    nb::gil_scoped_release release;
    find_ids(index_at(ids, rows, entries, size), at<const int64_t>(wanted), count, missing, at<int64_t>(found),
             threads);
  });
  m.def("id_map_count", [](int64_t ids, int64_t rows, int64_t entries, int64_t size, int64_t counts, int64_t last,
                           int64_t history_ids, int64_t history_rows, int64_t history_entries, int64_t history_size,
                           int64_t history_counts, int64_t history_last, int64_t used, int64_t totals, int64_t batch,
                           int64_t count, int64_t now, int64_t missing, int64_t found, int threads) {
    nb::gil_scoped_release release;
    const History history = {index_at(history_ids, history_rows, history_entries, history_size),
                             at<int64_t>(history_ids), at<int64_t>(history_counts), at<int64_t>(history_last),
                             at<int64_t>(used)};
    count_ids(index_at(ids, rows, entries, size), {at<int64_t>(counts), at<int64_t>(last)}, history,
              at<const int64_t>(batch), count, now, missing, at<int64_t>(found), at<int64_t>(totals), threads);
  });
  m.def("id_map_replace", [](int64_t ids, int64_t rows, int64_t entries, int64_t size, int64_t occupied, int64_t scores,
                             int64_t candidate_scores, bool floating, int64_t candidates, int64_t count, int64_t changed,
                             int64_t chosen, int64_t evicted, int threads) {
    nb::gil_scoped_release release;
    Replacement result = {at<int64_t>(changed), at<int64_t>(chosen), at<int64_t>(evicted), 0, 0};
    replace_ids(map_at(ids, rows, entries, size, occupied),
                {at<const void>(scores), at<const void>(candidate_scores), floating}, at<const int64_t>(candidates),
                count, &result, threads);
    return std::make_pair(result.num_rows, result.num_evicted);
  });
  m.def("id_map_exchange", [](int64_t ids, int64_t rows, int64_t entries, int64_t size, int64_t occupied, int64_t counts,
                              int64_t last, int64_t scores, int64_t candidate_scores, bool floating, int64_t candidates,
                              int64_t candidate_counts, int64_t candidate_last, int64_t count, int64_t history_entries,
                              int64_t history_index_size, int64_t used, int64_t batch, int64_t found, int64_t batch_size,
                              int64_t missing, int64_t changed, int threads) {
    nb::gil_scoped_release release;
    const size_t room = static_cast<size_t>(std::min(count, rows));
    const Scratch scratch((2 * room + 1) * sizeof(int64_t));
    int64_t* const chosen = reinterpret_cast<int64_t*>(scratch.data());
    Replacement done = {at<int64_t>(changed), chosen, chosen + room, 0, 0};
    const Map map = map_at(ids, rows, entries, size, occupied);
    replace_ids(map, {at<const void>(scores), at<const void>(candidate_scores), floating}, at<const int64_t>(candidates),
                count, &done, threads);
    move_counts(done, {at<int64_t>(candidate_counts), at<int64_t>(candidate_last)},
                {at<int64_t>(counts), at<int64_t>(last)});
    std::memset(at<void>(history_entries), 0, static_cast<size_t>(history_index_size) * sizeof(uint32_t));
    *at<int64_t>(used) = 0;
    find_again(map, at<const int64_t>(batch), batch_size, missing, at<int64_t>(found), threads);
    return std::make_pair(done.num_rows, done.num_evicted);
  });
  m.def("id_map_insert", [](int64_t ids, int64_t rows, int64_t entries, int64_t size, int64_t occupied, int64_t added,
                            int64_t chosen, int64_t count) {
    nb::gil_scoped_release release;
    insert_ids(map_at(ids, rows, entries, size, occupied), at<const int64_t>(added), rows_at(chosen, count, rows), count);
  });
  m.def("id_map_erase", [](int64_t ids, int64_t rows, int64_t entries, int64_t size, int64_t occupied, int64_t chosen,
                           int64_t count) {
    nb::gil_scoped_release release;
    erase_rows(map_at(ids, rows, entries, size, occupied), rows_at(chosen, count, rows), count);
  });
  m.def("id_map_rebuild", [](int64_t ids, int64_t rows, int64_t entries, int64_t size, int64_t chosen, int64_t count) {
    nb::gil_scoped_release release;
    rebuild_index(index_at(ids, rows, entries, size), rows_at(chosen, count, rows), count);
  });
}

}  // namespace rowwise
