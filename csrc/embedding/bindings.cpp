// From lists of addresses to a Batch. The numbers that do not change from call to call come in one int64 tensor, the spec.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "address.h"
#include "embedding/embedding.h"
#include "scratch.h"
#include "tensor.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

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

using Names = std::vector<std::string>;
std::tuple<int64_t, Names, Names, Names, Names> embedding_layout() {
  return {kLayoutVersion, {ROWWISE_HEADER(ROWWISE_NAME)}, {ROWWISE_TABLE(ROWWISE_NAME)}, {ROWWISE_SLOT(ROWWISE_NAME)},
          {ROWWISE_HYPER(ROWWISE_NAME)}};
}

enum SpecPolicy : int64_t { kError, kHash, kOverflow, kClamp, kIgnore, kRows };

int64_t size_of(Float dtype) { return dtype == Float::f32 ? 4 : 2; }

// The dtypes that kernels take.
std::optional<Float> float_of(const TensorView& view) {
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

// The tables of a call, none if kernels do not take the dtype of a weight.
std::optional<Call> call_of(nb::handle spec, nb::sequence weights) {
  Call call(spec);
  REQUIRE(nb::len(weights) == call.tables.size(), "`weights` should hold one tensor a table (" +
                                                     std::to_string(call.tables.size()) + "). Received " +
                                                     std::to_string(nb::len(weights)) + ".");
  size_t t = 0;
  for (nb::handle weight : weights) {
    if (!call.set_weight(t++, weight)) return std::nullopt;
  }
  return call;
}

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

using Pass = Failure (*)(const Batch& batch, int64_t* out_of_range);

FailureTuple run_pass(Pass pass, const Batch& batch, int64_t out_of_range) {
  Failure failure;
  {
    nb::gil_scoped_release release;
    failure = pass(batch, at<int64_t>(out_of_range));
  }
  return {static_cast<int>(failure.kind), failure.slot, failure.bag_index, failure.value};
}

// Writes zeros into an output that its slots may not fill, which nearly all do, one behind the other.
void clear_gaps(const Call& call, const Pooled& input) {
  int64_t filled = 0;
  for (size_t s = 0; s < call.slots.size() && call.slot_specs[s].column == filled; ++s) {
    filled += call.tables[call.slots[s].table].dim;
  }
  if (filled == input.width) return;
  const int64_t bags = (input.num_offsets - 1) / input.keys;
  std::memset(at<void>(input.rows), 0, static_cast<size_t>(bags * input.width * size_of(static_cast<Float>(input.rows_dtype))));
}
void clear_gaps(const Call&, const Sequence&) {}  // a slot has an output of its own

template <class Input>
FailureTuple forward(Call& call, const Input& input, int64_t out_of_range, int threads) {
  const Batch batch = make_batch(call, input, threads);
  clear_gaps(call, input);
  return run_pass(embedding_kernels().forward, batch, out_of_range);
}

// Rows have one column, an int64, in place of those of a table.
FailureTuple choose_rows(Call& call, Sequence input, int64_t out_of_range, int threads) {
  input.dims.clear();
  for (const Slot& slot : call.slots) input.dims.push_back(call.tables[slot.table].dim);
  return run_pass(embedding_kernels().choose_rows, make_batch(call, input, threads), out_of_range);
}

// A row and a bag are sorted as one number; no memory holds more.
void check_rows(const Batch& batch) {
  double bags = 0;
  for (int64_t s = 0; s < batch.num_slots; ++s) bags += static_cast<double>(batch.slots[s].bags);
  for (int64_t t = 0; t < batch.num_tables; ++t)
    REQUIRE(bags * static_cast<double>(batch.tables[t].rows) < 0x1p62,
            "Table number " + std::to_string(t) + " should have fewer than 2^62 rows, times bags. Received " +
                std::to_string(batch.tables[t].rows) + " rows.");
}

void run_backward(const Batch& batch, std::vector<Sink>& sinks) {
  check_rows(batch);
  nb::gil_scoped_release release;
  embedding_kernels().backward(batch, sinks.data());
}

template <class Input>
void dense_grad(Call& call, const Input& input, const Ints& outputs, int threads) {
  const Batch batch = make_batch(call, input, threads);
  std::vector<Sink> sinks(call.tables.size());
  for (size_t t = 0; t < sinks.size(); ++t) sinks[t].active = true, sinks[t].dense = at<void>(outputs[t]);
  run_backward(batch, sinks);
}

// Returns, per table, how many rows were written.
template <class Input>
Ints sparse_grad(Call& call, const Input& input, const Ints& rows, const Ints& values, int threads) {
  const Batch batch = make_batch(call, input, threads);
  std::vector<Sink> sinks(call.tables.size());
  for (size_t t = 0; t < sinks.size(); ++t) {
    sinks[t].active = true;
    sinks[t].rows = at<int64_t>(rows[t]);
    sinks[t].values = at<void>(values[t]);
  }
  run_backward(batch, sinks);
  Ints counts;
  for (const Sink& sink : sinks) counts.push_back(sink.count);
  return counts;
}

Optimizer make_optimizer(const TableSpec& spec, const Hyper& h) {
  Optimizer o;
  o.rule = static_cast<Rule>(spec.rule);
  o.lr = static_cast<float>(h.lr);
  o.eps = static_cast<float>(h.eps);
  o.beta1 = static_cast<float>(h.beta1);
  o.beta2 = static_cast<float>(h.beta2);
  o.weight_decay = static_cast<float>(h.weight_decay);
  o.momentum = static_cast<float>(h.momentum);
  o.eta = static_cast<float>(h.eta);
  o.max_gradient = static_cast<float>(h.max_gradient);
  o.decoupled = h.decoupled != 0;
  o.nesterov = h.nesterov != 0;
  o.dampening = static_cast<float>(h.dampening);
  o.step = h.step;
  o.dense = h.dense != 0;
  o.row_decay = h.samples > 0 ? static_cast<float>(h.batch_l2 / h.samples) : 0;
  return o;
}

// How many states the kernel of a rule reads.
int64_t states_of(const Optimizer& o) {
  switch (o.rule) {
    case Rule::sgd:
    case Rule::lars_sgd: return o.momentum != 0 ? 1 : 0;
    case Rule::adagrad:
    case Rule::rowwise_adagrad: return 1;
    case Rule::adam:
    case Rule::partial_rowwise_adam:
    case Rule::lamb:
    case Rule::partial_rowwise_lamb: return 2;
  }
  return 2;
}

Hyper* hyper_at(nb::handle hyper, int64_t num_tables) {
  TensorView view;
  constexpr int64_t fields = sizeof(Hyper) / sizeof(double);
  if (!read_tensor(hyper, view) || view.kind != 2 || view.bits != 64 || view.dims != 2 || view.shape[0] != num_tables ||
      view.shape[1] != fields || !view.is_contiguous()) {
    throw nb::type_error(("`hyper` should be float64 (" + std::to_string(num_tables) + ", " + std::to_string(fields) +
                          ") on the CPU, contiguous. Received " + dtype_of(hyper) + " " +
                          nb::repr(nb::tuple(hyper.attr("shape"))).c_str() + ".").c_str());
  }
  return static_cast<Hyper*>(view.data);
}

// What the reference refuses: before anything is written, as what an update has made of NaN stays.
void require_hyper(const Hyper& h, size_t t) {
  const double not_negative[] = {h.lr, h.eps, h.weight_decay, h.momentum, h.eta, h.dampening, h.batch_l2};
  bool holds = std::isfinite(h.step) && std::isfinite(h.samples) && !(h.max_gradient < 0) && !std::isnan(h.max_gradient);
  for (const double number : not_negative) holds = holds && number >= 0 && std::isfinite(number);
  for (const double beta : {h.beta1, h.beta2}) holds = holds && beta >= 0 && beta < 1;
  holds = holds && (h.nesterov == 0 || (h.momentum != 0 && h.dampening == 0));
  REQUIRE(holds, "`hyper` of table number " + std::to_string(t) +
                     " should hold hyper-parameters that an update can mean: finite, not negative, decays below 1. "
                     "Received others.");
}

TensorView state_of(nb::handle state) {
  TensorView view;
  if (!read_tensor(state, view)) refuse_unreadable(state, "`states`");
  if (view.kind != 2 || view.bits != 32 || !view.is_contiguous()) {
    throw nb::type_error(("States of fused optimizers should be contiguous float32 on the CPU. Received " + dtype_of(state) +
                          ".").c_str());
  }
  return view;
}

// Of each table.
std::vector<bool> have_gradients(const Batch& batch) {
  std::vector<bool> found(static_cast<size_t>(batch.num_tables));
  for (int64_t s = 0; s < batch.num_slots; ++s)
    if (batch.slots[s].rows != nullptr) found[static_cast<size_t>(batch.slots[s].table)] = true;
  return found;
}

// The update of the tables of a call. `hyper` has one row a table. The states of the tables follow one another, as many for
// each as its spec says. All is checked before anything is written.
struct TableUpdates {
  std::vector<Sink> sinks;
  std::vector<Optimizer> optimizers;
  Hyper* settings;

  TableUpdates(const Call& call, const Batch& batch, nb::handle hyper, const std::vector<nb::object>& states)
      : sinks(call.tables.size()),
        optimizers(call.tables.size()),
        settings(hyper_at(hyper, static_cast<int64_t>(call.tables.size()))) {
    const std::vector<bool> has_gradient = have_gradients(batch);
    size_t next = 0;
    for (size_t t = 0; t < sinks.size(); ++t) {
      const TableSpec& spec = call.table_specs[t];
      if (spec.rule < 0 || !has_gradient[t]) {  // frozen for now, or not used
        next += static_cast<size_t>(spec.states);
        continue;
      }
      sinks[t].active = true;
      require_hyper(settings[t], t);
      Optimizer& o = optimizers[t] = make_optimizer(spec, settings[t]);
      o.step += 1;
      sinks[t].optimizer = &o;
      REQUIRE(spec.states >= states_of(o), "Table number " + std::to_string(t) + " of the spec should have " +
                                               std::to_string(states_of(o)) + " states, as its update rule needs. Received " +
                                               std::to_string(spec.states) + ".");
      const bool row_wise[] = {o.rule == Rule::rowwise_adagrad,
                               o.rule == Rule::partial_rowwise_adam || o.rule == Rule::partial_rowwise_lamb};
      for (int64_t k = 0; k < spec.states; ++k, ++next) {
        const int64_t wanted = spec.shard_rows * (row_wise[k] ? 1 : spec.dim);
        REQUIRE(next < states.size(), "State " + std::to_string(k) + " of table number " + std::to_string(t) +
                                          " should have " + std::to_string(wanted) + " elements. Received no state.");
        const TensorView state = state_of(states[next]);
        REQUIRE(state.count() == wanted, "State " + std::to_string(k) + " of table number " + std::to_string(t) +
                                             " should have " + std::to_string(wanted) + " elements. Received " +
                                             std::to_string(state.count()) + ".");
        (k == 0 ? o.first : o.second) = static_cast<float*>(state.data);
      }
    }
    REQUIRE(next == states.size(), "`states` should be those of all tables in turn (" + std::to_string(next) +
                                       "). Received " + std::to_string(states.size()) + ".");
  }

  void count_step() {  // now that nothing is refused any more
    for (size_t t = 0; t < sinks.size(); ++t) {
      if (sinks[t].active) settings[t].step += 1;
    }
  }
};

template <class Input>
void update(Call& call, const Input& input, nb::handle hyper, const std::vector<nb::object>& states, int threads) {
  const Batch batch = make_batch(call, input, threads);
  TableUpdates updates(call, batch, hyper, states);
  updates.count_step();
  run_backward(batch, updates.sinks);
}

// An update in two halves, see `split_update.h`. Whoever makes one keeps the tensors until it is done.
class SplitUpdate {
 public:
  template <class Input>
  SplitUpdate(const Call& tables, const Input& input, nb::handle hyper, const std::vector<nb::object>& states,
              const std::vector<double>& shares, int threads)
      : call_(tables), batch_(make_batch(call_, input, threads)), updates_(call_, batch_, hyper, states),
        splits_(call_.tables.size()) {
    REQUIRE(shares.size() == splits_.size(), "`shares` should be one a table. Received others.");
    check_rows(batch_);
    for (size_t t = 0; t < splits_.size(); ++t) {
      const Optimizer& o = updates_.optimizers[t];
      splits_[t].share = static_cast<float>(shares[t]);
      REQUIRE(!updates_.sinks[t].active || (o.rule == Rule::rowwise_adagrad && !o.dense && o.first != nullptr),
              "Table number " + std::to_string(t) + " should be updated by row-wise Adagrad of the rows that ids chose.");
    }
    nb::gil_scoped_release release;
    const EmbeddingKernels& kernels = embedding_kernels();
    memory_.emplace(kernels.plan_split(batch_, updates_.sinks.data(), splits_.data()) + 64);
    kernels.run_split(batch_, updates_.sinks.data(), splits_.data(), memory_->data(), nullptr);
    for (SplitTable& split : splits_) split.first = total_, total_ += split.numbers;
  }

  // How many numbers each table has.
  Ints counts() const {
    Ints found;
    for (const SplitTable& split : splits_) found.push_back(split.numbers);
    return found;
  }

  void write(int64_t numbers) const {
    for (const SplitTable& split : splits_) {
      if (split.numbers > 0)
        std::memcpy(at<float>(numbers) + split.first, memory_->data() + split.found, static_cast<size_t>(split.numbers) * 4);
    }
  }

  void finish(int64_t numbers, int64_t count) {
    REQUIRE(memory_ && count == total_, "`numbers` should be as many as were measured (" + std::to_string(total_) +
                                            "), once. Received " + std::to_string(count) + ".");
    updates_.count_step();
    nb::gil_scoped_release release;
    const float given = 0;  // some address, also where there are none
    embedding_kernels().run_split(batch_, updates_.sinks.data(), splits_.data(), memory_->data(),
                                  count > 0 ? at<const float>(numbers) : &given);
    memory_.reset();
  }

 private:
  Call call_;
  Batch batch_;
  TableUpdates updates_;
  std::vector<SplitTable> splits_;
  std::optional<Scratch> memory_;
  int64_t total_ = 0;
};

void weights_grad(Call& call, const Pooled& input, int64_t gradient, int threads) {
  const Batch batch = make_batch(call, input, threads);
  nb::gil_scoped_release release;
  embedding_kernels().weights_backward(batch, at<float>(gradient));
}

// Memory that is kept for the next call when the tensor over it dies: the pages of a large fresh tensor cost more than
// the look-up that fills them.
nb::ndarray<nb::pytorch, uint8_t, nb::ndim<1>> recycled(size_t bytes) {
  REQUIRE(bytes < size_t{1} << 47, "An output should fit the memory. Received a size of " + std::to_string(bytes) + " bytes.");
  auto* scratch = new Scratch(bytes);
  nb::capsule owner(scratch, [](void* p) noexcept { delete static_cast<Scratch*>(p); });
  return nb::ndarray<nb::pytorch, uint8_t, nb::ndim<1>>(scratch->data(), {bytes}, owner);
}

template <class Input>
void bind_input(nb::module_& m) {
  m.def("embedding_forward", &forward<Input>);
  m.def("embedding_dense_grad", &dense_grad<Input>);
  m.def("embedding_sparse_grad", &sparse_grad<Input>);
  m.def("embedding_update", &update<Input>);
  m.def("embedding_split_update",
        [](const Call& call, const Input& input, nb::handle hyper, const std::vector<nb::object>& states,
           const std::vector<double>& shares, int threads) {
          return std::make_unique<SplitUpdate>(call, input, hyper, states, shares, threads);
        });
}

}  // namespace

void bind_embedding(nb::module_& m) {
  m.def("embedding_layout", &embedding_layout);
  nb::class_<Call>(m, "Tables")
      .def_prop_ro("size", [](const Call& call) { return call.tables.size(); })
      .def(nb::init<nb::handle>());
  m.def("embedding_tables", &call_of);
  nb::class_<Pooled>(m, "Pooled")
      .def(nb::init<nb::object, nb::object, nb::object, nb::object, int64_t, nb::object>(), nb::arg(), nb::arg(),
           nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg());
  nb::class_<Sequence>(m, "Sequence")
      .def("__init__", [](Sequence* self, int64_t ids, int64_t num_ids, bool wide_ids, Ints starts, Ints counts, Ints rows,
                          Ints dims, int64_t rows_dtype) {
        new (self) Sequence{ids,  num_ids, wide_ids, std::move(starts), std::move(counts), std::move(rows), std::move(dims),
                            rows_dtype};
      });
  nb::class_<SplitUpdate>(m, "SplitUpdate")
      .def_prop_ro("counts", &SplitUpdate::counts)
      .def("write", &SplitUpdate::write)
      .def("finish", &SplitUpdate::finish);
  bind_input<Pooled>(m);
  bind_input<Sequence>(m);
  m.def("embedding_choose_rows", &choose_rows);
  m.def("embedding_weights_grad", &weights_grad);
  m.def("recycled", &recycled);
}

}  // namespace rowwise
