// From lists of addresses to a Batch. The numbers that do not change from call to call come in one int64 tensor, the
// spec, laid out by torchrec/ops/embedding/spec.py; its constants are repeated here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <vector>

#include "embedding/embedding.h"
#include "scratch.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

using Ints = std::vector<int64_t>;

constexpr int64_t kHeader = 2, kTableFields = 6, kSlotFields = 4, kHyperFields = 12;

enum SpecPolicy : int64_t { kError, kHash, kOverflow, kClamp, kIgnore };

struct TableSpec {
  int64_t dim, rows, known, policy, rule, states;
};
struct SlotSpec {
  int64_t table, key, pooling, column;
};
struct Hyper {
  double lr, eps, beta1, beta2, weight_decay, momentum, eta, max_gradient, decoupled, nesterov, step, dampening;
};
static_assert(sizeof(TableSpec) == kTableFields * 8 && sizeof(SlotSpec) == kSlotFields * 8);
static_assert(sizeof(Hyper) == kHyperFields * 8);

template <class T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

int64_t size_of(Float dtype) { return dtype == Float::f32 ? 4 : 2; }

// The tables and slots of a call; `batch()` points into it.
struct Call {
  std::vector<Table> tables;
  std::vector<Slot> slots;
  const TableSpec* table_specs = nullptr;
  const SlotSpec* slot_specs = nullptr;

  // Each weight is given as address, number of elements, elements a row and dtype; the sizes must be those of the spec,
  // since the kernels trust it.
  Call(int64_t spec, const Ints& weights, const Ints& sizes, const Ints& dims, const Ints& dtypes) {
    const int64_t* header = at<const int64_t>(spec);
    const int64_t num_tables = header[0], num_slots = header[1];
    table_specs = reinterpret_cast<const TableSpec*>(header + kHeader);
    slot_specs = reinterpret_cast<const SlotSpec*>(table_specs + num_tables);
    if (static_cast<int64_t>(weights.size()) != num_tables) {
      throw nb::value_error(("`weights` should hold one tensor a table (" + std::to_string(num_tables) + "). Received " +
                             std::to_string(weights.size()) + ".").c_str());
    }
    tables.resize(num_tables);
    slots.resize(num_slots);
    for (int64_t t = 0; t < num_tables; ++t) {
      const TableSpec& p = table_specs[t];
      if (sizes[t] != p.rows * p.dim || dims[t] != p.dim) {
        throw nb::value_error(("The weight of table number " + std::to_string(t) + " should have the shape (" +
                               std::to_string(p.rows) + ", " + std::to_string(p.dim) + "), as configured. Received " +
                               std::to_string(sizes[t]) + " elements in rows of " + std::to_string(dims[t]) + ".").c_str());
      }
      Table& table = tables[t];
      table.weight = at<void>(weights[t]);
      table.dtype = static_cast<Float>(dtypes[t]);
      table.dim = p.dim;
      table.known = p.known;
      switch (p.policy) {
        case kHash: table.policy = Policy::remap, table.base = 0, table.span = p.known; break;
        case kOverflow: table.policy = Policy::remap, table.base = p.known, table.span = p.rows - p.known; break;
        case kClamp: table.policy = Policy::clamp; break;
        case kIgnore: table.policy = Policy::ignore; break;
        default: table.policy = Policy::error;
      }
    }
    for (int64_t s = 0; s < num_slots; ++s) slots[s].table = static_cast<int32_t>(slot_specs[s].table);
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

void require(bool holds, const std::string& message) {
  if (!holds) throw nb::value_error(message.c_str());
}

// Pooled input: one tensor of ids, one of offsets (keys x bags + 1), output or gradient bags x width. `fill` checks what
// keeps the kernels within them.
struct Pooled {
  int64_t ids, num_ids, offsets, num_offsets, sample_weights, keys;
  bool wide_ids, wide_offsets;
  int64_t rows, stride, width, rows_dtype;

  void fill(Call& call) const {
    const int64_t bags = keys > 0 ? (num_offsets - 1) / keys : 0;
    require(num_offsets == keys * bags + 1,
            "`offsets` should be " + std::to_string(keys) + " keys x the size of the batch, and one. Received " +
                std::to_string(num_offsets) + ".");
    require(embedding_kernels().offsets_fit(at<void>(offsets), wide_offsets, num_offsets, num_ids),
            "`offsets` should start at 0 or later, never fall, and end within the values (" + std::to_string(num_ids) + ").");
    const int64_t offset_size = wide_offsets ? 8 : 4, element = size_of(static_cast<Float>(rows_dtype));
    for (size_t s = 0; s < call.slots.size(); ++s) {
      const SlotSpec& spec = call.slot_specs[s];
      Slot& slot = call.slots[s];
      require(spec.key < keys && spec.column + call.tables[slot.table].dim <= width,
              "Slot number " + std::to_string(s) + " should lie within the " + std::to_string(keys) + " keys and the " +
                  std::to_string(width) + " columns.");
      slot.pooling = static_cast<Pooling>(spec.pooling);
      slot.ids = at<void>(ids);
      slot.offsets = at<void>(offsets + spec.key * bags * offset_size);
      slot.sample_weights = at<float>(sample_weights);
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
  Ints starts, counts, rows;
  int64_t rows_dtype;

  void fill(Call& call) const {
    require(starts.size() == call.slots.size() && counts.size() == call.slots.size() && rows.size() == call.slots.size(),
            "`starts`, `counts` and rows should be one a slot (" + std::to_string(call.slots.size()) + ").");
    for (size_t s = 0; s < call.slots.size(); ++s) {
      require(starts[s] >= 0 && counts[s] >= 0 && starts[s] <= num_ids - counts[s],
              "Slot number " + std::to_string(s) + " should lie within the values (" + std::to_string(num_ids) +
                  "). Received " + std::to_string(counts[s]) + " from " + std::to_string(starts[s]) + " on.");
      Slot& slot = call.slots[s];
      slot.ids = at<char>(ids) + starts[s] * (wide_ids ? 8 : 4);
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

template <class Input>
FailureTuple forward(Call& call, const Input& input, int64_t out_of_range, int threads) {
  const Batch batch = make_batch(call, input, threads);
  Failure failure;
  {
    nb::gil_scoped_release release;
    failure = embedding_kernels().forward(batch, at<int64_t>(out_of_range));
  }
  return {static_cast<int>(failure.kind), failure.slot, failure.bag_index, failure.value};
}

void run_backward(const Batch& batch, std::vector<Sink>& sinks) {
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
  return o;
}

bool has_gradient(const Batch& batch, int32_t table) {
  for (int64_t s = 0; s < batch.num_slots; ++s)
    if (batch.slots[s].table == table && batch.slots[s].rows != nullptr) return true;
  return false;
}

// `hyper` has one row a table, whose step count is advanced. The states of the tables follow one another, as many for
// each as its spec says.
template <class Input>
void update(Call& call, const Input& input, int64_t hyper, const Ints& states, const Ints& state_sizes, int threads) {
  const Batch batch = make_batch(call, input, threads);
  std::vector<Sink> sinks(call.tables.size());
  std::vector<Optimizer> optimizers(call.tables.size());
  Hyper* settings = at<Hyper>(hyper);
  size_t next = 0;
  for (size_t t = 0; t < sinks.size(); ++t) {
    const TableSpec& spec = call.table_specs[t];
    if (spec.rule < 0 || !has_gradient(batch, static_cast<int32_t>(t))) {  // frozen for now, or not used
      next += static_cast<size_t>(spec.states);
      continue;
    }
    settings[t].step += 1;
    sinks[t].active = true;
    Optimizer& o = optimizers[t] = make_optimizer(spec, settings[t]);
    sinks[t].optimizer = &o;
    const bool row_wise[] = {o.rule == Rule::rowwise_adagrad,
                             o.rule == Rule::partial_rowwise_adam || o.rule == Rule::partial_rowwise_lamb};
    for (int64_t k = 0; k < spec.states; ++k, ++next) {
      const int64_t wanted = spec.rows * (row_wise[k] ? 1 : spec.dim);
      if (next >= states.size() || state_sizes[next] != wanted) {
        throw nb::value_error(("State " + std::to_string(k) + " of table number " + std::to_string(t) + " should have " +
                               std::to_string(wanted) + " elements.").c_str());
      }
      (k == 0 ? o.first : o.second) = at<float>(states[next]);
    }
  }
  run_backward(batch, sinks);
}

void weights_grad(Call& call, const Pooled& input, int64_t gradient, int threads) {
  const Batch batch = make_batch(call, input, threads);
  nb::gil_scoped_release release;
  embedding_kernels().weights_backward(batch, at<float>(gradient));
}

// Memory that is kept for the next call when the tensor over it dies: the pages of a large fresh tensor cost more than
// the look-up that fills them.
nb::ndarray<nb::pytorch, uint8_t, nb::ndim<1>> recycled(size_t bytes) {
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
}

}  // namespace

void bind_embedding(nb::module_& m) {
  nb::class_<Call>(m, "Tables").def(nb::init<int64_t, const Ints&, const Ints&, const Ints&, const Ints&>());
  nb::class_<Pooled>(m, "Pooled")
      .def("__init__", [](Pooled* self, int64_t ids, int64_t num_ids, bool wide_ids, int64_t offsets, int64_t num_offsets,
                          bool wide_offsets, int64_t sample_weights, int64_t keys, int64_t rows, int64_t stride,
                          int64_t width, int64_t rows_dtype) {
        new (self) Pooled{ids,      num_ids,      offsets, num_offsets, sample_weights, keys,
                          wide_ids, wide_offsets, rows,    stride,      width,          rows_dtype};
      });
  nb::class_<Sequence>(m, "Sequence")
      .def("__init__", [](Sequence* self, int64_t ids, int64_t num_ids, bool wide_ids, Ints starts, Ints counts, Ints rows,
                          int64_t rows_dtype) {
        new (self) Sequence{ids, num_ids, wide_ids, std::move(starts), std::move(counts), std::move(rows), rows_dtype};
      });
  bind_input<Pooled>(m);
  bind_input<Sequence>(m);
  m.def("embedding_weights_grad", &weights_grad);
  m.def("recycled", &recycled);
}

}  // namespace rowwise
