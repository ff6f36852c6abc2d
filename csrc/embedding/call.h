// From the tensors of a look-up to a Batch, for the bindings of all families that look rows up. The numbers that do not
// change from call to call come in one int64 tensor, the spec.
#pragma once

#include <nanobind/nanobind.h>

#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "address.h"
#include "embedding/embedding.h"
#include "tensor.h"

namespace nb = nanobind;

namespace rowwise {

// The layout of the spec and of the hyper-parameters. torchrec/ops/embedding/layout.py names the same fields in the same
// order, and a test compares the two. Whoever changes one raises the version, which every spec begins with.
constexpr int64_t kLayoutVersion = 3;
#define ROWWISE_HEADER(X) X(version) X(tables) X(slots)
#define ROWWISE_TABLE(X) X(dim) X(rows) X(num_embeddings) X(policy) X(rule) X(states) X(first_row) X(shard_rows)
#define ROWWISE_SLOT(X) X(table) X(key) X(pooling) X(column)
#define ROWWISE_HYPER(X)                                                                                          \
  X(lr) X(eps) X(beta1) X(beta2) X(weight_decay) X(momentum) X(eta) X(max_gradient) X(decoupled) X(nesterov) X(step) \
  X(dampening) X(dense) X(batch_l2) X(samples)

#define ROWWISE_INTEGER(name) int64_t name;
#define ROWWISE_REAL(name) double name;
#define ROWWISE_NAME(name) #name,
struct SpecHeader { ROWWISE_HEADER(ROWWISE_INTEGER) };
struct TableSpec { ROWWISE_TABLE(ROWWISE_INTEGER) };
struct SlotSpec { ROWWISE_SLOT(ROWWISE_INTEGER) };
struct Hyper { ROWWISE_HYPER(ROWWISE_REAL) };

enum SpecPolicy : int64_t { kError, kHash, kOverflow, kClamp, kIgnore, kRows };

inline int64_t size_of(Float dtype) { return dtype == Float::f32 ? 4 : 2; }

// The dtypes that kernels take.
inline std::optional<Float> float_of(const TensorView& view) {
  if (view.kind == 2 && view.bits == 32) return Float::f32;
  if (view.kind == 2 && view.bits == 16) return Float::f16;
  if (view.kind == 4 && view.bits == 16) return Float::bf16;
  return std::nullopt;
}

// The tables and slots of a call; `batch()` points into it.
struct Call {
  std::vector<Table> tables;
  std::vector<Slot> slots;
  const TableSpec* table_specs = nullptr;
  const SlotSpec* slot_specs = nullptr;

  explicit Call(nb::handle tensor) {
    TensorView view;
    if (!read_tensor(tensor, view) || view.kind != 0 || view.bits != 64 || view.dims != 1 || !view.is_contiguous()) {
      refuse("`spec` should be one-dimensional, contiguous int64 on the CPU, as the tables. Received others.");
    }
    const int64_t size = view.shape[0];
    const int64_t* numbers = static_cast<const int64_t*>(view.data);
    constexpr int64_t header = sizeof(SpecHeader) / 8, per_table = sizeof(TableSpec) / 8, per_slot = sizeof(SlotSpec) / 8;
    REQUIRE(size >= header && numbers[0] == kLayoutVersion,
            "`spec` should have version " + std::to_string(kLayoutVersion) + " of the layout. Received " +
                (size ? std::to_string(numbers[0]) : "no numbers") + ".");
    const int64_t num_tables = numbers[1], num_slots = numbers[2];
    REQUIRE(num_tables >= 0 && num_slots >= 0 && num_tables <= size && num_slots <= size &&
                size == header + num_tables * per_table + num_slots * per_slot,
            "`spec` should hold the numbers of its tables and slots. Received " + std::to_string(size) + " numbers.");
    table_specs = reinterpret_cast<const TableSpec*>(numbers + header);
    slot_specs = reinterpret_cast<const SlotSpec*>(table_specs + num_tables);
    tables.resize(num_tables);
    slots.resize(num_slots);
    for (int64_t t = 0; t < num_tables; ++t) {
      const TableSpec& p = table_specs[t];
      Table& table = tables[t];
      REQUIRE(p.dim >= 0 && p.num_embeddings >= 0 && p.num_embeddings <= p.rows && p.first_row >= 0 &&
                  p.shard_rows >= 0 && p.first_row <= p.rows - p.shard_rows,
              "Table number " + std::to_string(t) + " of the spec should have no negative sizes, and no more embeddings or " +
                  "rows of a shard than the " + std::to_string(p.rows) + " rows of the table.");
      REQUIRE(p.policy >= kError && p.policy <= kRows && p.rule >= -1 &&
                  p.rule <= static_cast<int64_t>(Rule::lars_sgd) && p.states >= 0 && p.states <= 2,
              "Table number " + std::to_string(t) + " of the spec should have a policy and an update rule that there is.");
      table.dim = p.dim;
      table.num_embeddings = p.num_embeddings;
      switch (p.policy) {
        case kHash: table.policy = Policy::remap, table.base = 0, table.span = p.num_embeddings; break;
        case kOverflow:
          table.policy = Policy::remap, table.base = p.num_embeddings, table.span = p.rows - p.num_embeddings;
          break;
        case kClamp: table.policy = Policy::clamp; break;
        case kIgnore: table.policy = Policy::ignore; break;
        case kRows: table.policy = Policy::rows, table.num_embeddings = p.rows; break;
        default: table.policy = Policy::error;
      }
      if (table.policy == Policy::remap && table.span <= 0) table.policy = Policy::ignore;  // nowhere to go
      table.set_shard(p.first_row, p.shard_rows);
    }
    for (int64_t s = 0; s < num_slots; ++s) {
      REQUIRE(slot_specs[s].pooling >= 0 && slot_specs[s].pooling <= static_cast<int64_t>(Pooling::none),
              "Slot number " + std::to_string(s) + " of the spec should have a pooling that there is. Received " +
                  std::to_string(slot_specs[s].pooling) + ".");
      REQUIRE(slot_specs[s].table >= 0 && slot_specs[s].table < num_tables,
              "Slot number " + std::to_string(s) + " should have a table below " + std::to_string(num_tables) +
                  ". Received " + std::to_string(slot_specs[s].table) + ".");
      slots[s].table = static_cast<int32_t>(slot_specs[s].table);
    }
  }

  // The sizes of a weight must be those of the spec, since the kernels trust it. False for a dtype that they do not take.
  bool set_weight(size_t t, nb::handle weight) {
    TensorView view;
    if (!read_tensor(weight, view)) refuse_unreadable(weight, "`weights`, number " + std::to_string(t) + ",");
    Table& table = tables[t];
    const std::optional<Float> dtype = float_of(view);
    if (!dtype) return false;
    REQUIRE(view.is_contiguous(), "The weight of table number " + std::to_string(t) + " should be contiguous.");
    REQUIRE(view.dims == 2, "`weights` should have two dimensions each. Received " + std::to_string(view.dims) +
                                " for table number " + std::to_string(t) + ".");
    REQUIRE(view.shape[0] == table.rows && view.shape[1] == table.dim,
            "The weight of table number " + std::to_string(t) + " should have the shape (" + std::to_string(table.rows) +
                ", " + std::to_string(table.dim) + "), as configured. Received (" + std::to_string(view.shape[0]) + ", " +
                std::to_string(view.shape[1]) + ").");
    table.weight = view.data;
    table.dtype = *dtype;
    return true;
  }

  Batch batch(bool wide_ids, bool wide_offsets, int64_t rows_dtype, int threads) const {
    Batch batch;
    batch.tables = tables.data();
    batch.num_tables = static_cast<int64_t>(tables.size());
    batch.slots = slots.data();
    batch.num_slots = static_cast<int64_t>(slots.size());
    batch.wide_ids = wide_ids;
    batch.wide_offsets = wide_offsets;
    batch.rows_dtype = static_cast<Float>(rows_dtype);
    batch.threads = threads;
    return batch;
  }
};

// Pooled input: one tensor of ids, one of offsets (keys x bags + 1), output or gradient bags x width. `fill` checks what
// keeps the kernels within them.
struct Pooled {
  int64_t ids, num_ids, offsets, num_offsets, sample_weights = 0, divisors = 0, keys;
  bool wide_ids, wide_offsets;
  int64_t rows, stride, width, rows_dtype;
  nb::object kept[5];  // the tensors

  // Sample weights and divisors, both contiguous, are float32 and int64, or None.
  Pooled(nb::object ids_tensor, nb::object offsets_tensor, nb::object sample_weights_tensor, nb::object divisors_tensor,
         int64_t num_keys, nb::object rows_tensor)
      : keys(num_keys), kept{ids_tensor, offsets_tensor, sample_weights_tensor, divisors_tensor, rows_tensor} {
    REQUIRE(keys > 0, "`num_keys` should be 1 or more. Received " + std::to_string(keys) + ".");
    const TensorView of_ids = integers_of(ids_tensor, "values"), of_offsets = integers_of(offsets_tensor, "offsets");
    ids = address(of_ids), num_ids = of_ids.shape[0], wide_ids = of_ids.bits == 64;
    offsets = address(of_offsets), num_offsets = of_offsets.shape[0], wide_offsets = of_offsets.bits == 64;
    if (!sample_weights_tensor.is_none()) {
      sample_weights = factors_at(sample_weights_tensor, "sample_weights", num_ids, {2, 32});
    }
    if (!divisors_tensor.is_none()) divisors = factors_at(divisors_tensor, "divisors", num_offsets - 1, {0, 64});
    TensorView view;
    if (!read_tensor(rows_tensor, view)) refuse_unreadable(rows_tensor, "`grad`");
    const std::optional<Float> dtype = float_of(view);
    REQUIRE(dtype && view.dims == 2 && (view.strides[1] == 1 || view.shape[1] < 2 || view.count() == 0),
            "`grad` should have two dimensions, and columns next to one another. Received " + std::to_string(view.dims) + ".");
    const int64_t bags = (num_offsets - 1) / keys;
    REQUIRE(view.shape[0] == bags, "`grad` should have a row for each sample (" + std::to_string(bags) + "). Received " +
                                       std::to_string(view.shape[0]) + ".");
    rows = address(view), stride = view.strides[0], width = view.shape[1], rows_dtype = static_cast<int64_t>(*dtype);
  }

  // 0 stands for no tensor.
  static int64_t address(const TensorView& view) { return view.data ? reinterpret_cast<intptr_t>(view.data) : 1; }

  static int64_t factors_at(nb::handle tensor, const char* name, int64_t count, std::pair<int, int> dtype) {
    TensorView view;
    const std::string what = std::string("`") + name + "`";
    if (!read_tensor(tensor, view)) refuse_unreadable(tensor, what);
    REQUIRE(view.dims == 1 && view.shape[0] == count && view.kind == dtype.first && view.bits == dtype.second &&
                view.is_contiguous(),
            what + " should be " + std::to_string(count) + " contiguous numbers. Received others.");
    return address(view);
  }

  void fill(Call& call) const {
    const int64_t bags = num_offsets > 0 ? (num_offsets - 1) / keys : 0;
    REQUIRE(num_offsets - 1 == keys * bags,
            "`offsets` should be " + std::to_string(keys) + " keys x the size of the batch, and one. Received " +
                std::to_string(num_offsets) + ".");
    REQUIRE(embedding_kernels().offsets_fit(at<void>(offsets, num_offsets, "offsets"), wide_offsets, num_offsets, num_ids),
            "`offsets` should start at 0 or later, never fall, and end within the values (" + std::to_string(num_ids) + ").");
    const int64_t offset_size = wide_offsets ? 8 : 4, element = size_of(static_cast<Float>(rows_dtype));
    for (size_t s = 0; s < call.slots.size(); ++s) {
      const SlotSpec& spec = call.slot_specs[s];
      Slot& slot = call.slots[s];
      REQUIRE(spec.key >= 0 && spec.key < keys && spec.column >= 0 &&
                  spec.column <= width - call.tables[slot.table].dim,
              "Slot number " + std::to_string(s) + " should lie within the " + std::to_string(keys) + " keys and the " +
                  std::to_string(width) + " columns.");
      slot.pooling = static_cast<Pooling>(spec.pooling);
      slot.ids = at<void>(ids, num_ids, "values");
      slot.offsets = at<void>(offsets + spec.key * bags * offset_size);
      slot.sample_weights = at<float>(sample_weights);
      if (divisors) slot.divisors = at<int64_t>(divisors) + spec.key * bags;
      slot.bags = bags;
      slot.rows = at<void>(rows + spec.column * element);
      slot.stride = stride;
    }
  }
};

// Sequence input: ids counts[s] from starts[s] on, output or gradient counts[s] x dim at rows[s] (0: none).
struct Sequence {
  static constexpr bool wide_offsets = true;  // has none
  int64_t ids, num_ids;
  bool wide_ids;
  Ints starts, counts, rows, dims;
  int64_t rows_dtype;

  void fill(Call& call) const {
    REQUIRE(starts.size() == call.slots.size() && counts.size() == call.slots.size() && rows.size() == call.slots.size() &&
                dims.size() == call.slots.size(),
            "`starts`, `counts` and rows should be one a slot (" + std::to_string(call.slots.size()) + ").");
    for (size_t s = 0; s < call.slots.size(); ++s) {
      REQUIRE(starts[s] >= 0 && counts[s] >= 0 && starts[s] <= num_ids - counts[s],
              "Slot number " + std::to_string(s) + " should lie within the values (" + std::to_string(num_ids) +
                  "). Received " + std::to_string(counts[s]) + " from " + std::to_string(starts[s]) + " on.");
      Slot& slot = call.slots[s];
      REQUIRE(rows[s] == 0 || dims[s] == call.tables[slot.table].dim,
              "Rows of slot number " + std::to_string(s) + " should have the " +
                  std::to_string(call.tables[slot.table].dim) + " columns of its table. Received " +
                  std::to_string(dims[s]) + ".");
      slot.ids = at<char>(ids, num_ids, "values") + starts[s] * (wide_ids ? 8 : 4);
      slot.bags = counts[s];
      slot.rows = at<void>(rows[s]);
      slot.stride = call.tables[slot.table].dim;
    }
  }
};

template <class Input>
Batch make_batch(Call& call, const Input& input, int threads) {
  input.fill(call);
  return call.batch(input.wide_ids, input.wide_offsets, input.rows_dtype, threads);
}

using FailureTuple = std::tuple<int, int64_t, int64_t, int64_t>;  // kind, slot, bag, value

// Calls `pass()`, which returns a Failure, without the GIL.
template <class Pass>
FailureTuple run_pass(const Pass& pass) {
  Failure failure;
  {
    nb::gil_scoped_release release;
    failure = pass();
  }
  return {static_cast<int>(failure.kind), failure.slot, failure.bag_index, failure.value};
}

// Writes zeros into an output that its slots may not fill, which nearly all do, one behind the other.
inline void clear_gaps(const Call& call, const Pooled& input) {
  int64_t filled = 0;
  for (size_t s = 0; s < call.slots.size() && call.slot_specs[s].column == filled; ++s) {
    filled += call.tables[call.slots[s].table].dim;
  }
  if (filled == input.width) return;
  const int64_t bags = (input.num_offsets - 1) / input.keys;
  std::memset(at<void>(input.rows), 0, static_cast<size_t>(bags * input.width * size_of(static_cast<Float>(input.rows_dtype))));
}
inline void clear_gaps(const Call&, const Sequence&) {}  // a slot has an output of its own

}  // namespace rowwise
