// The look-up, its gradients and updates, for Python.
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
#include "embedding/call.h"
#include "embedding/embedding.h"
#include "scratch.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

using Names = std::vector<std::string>;
std::tuple<int64_t, Names, Names, Names, Names> embedding_layout() {
  return {kLayoutVersion, {ROWWISE_HEADER(ROWWISE_NAME)}, {ROWWISE_TABLE(ROWWISE_NAME)}, {ROWWISE_SLOT(ROWWISE_NAME)},
          {ROWWISE_HYPER(ROWWISE_NAME)}};
}

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

template <class Input>
FailureTuple forward(Call& call, const Input& input, int64_t out_of_range, int threads) {
  const Batch batch = make_batch(call, input, threads);
  clear_gaps(call, input);
  return run_pass([&] { return embedding_kernels().forward(batch, at<int64_t>(out_of_range)); });
}

// None if kernels do not take the dtype of a weight. One call, since a small look-up takes no longer than another would.
std::optional<FailureTuple> look_up_bags(nb::handle spec, nb::sequence weights, nb::object values, nb::object offsets,
                                         nb::object sample_weights, nb::object divisors, int64_t num_keys, nb::object output,
                                         int64_t out_of_range, int threads) {
  std::optional<Call> call = call_of(spec, weights);
  if (!call) return std::nullopt;
  return forward(*call, Pooled(values, offsets, sample_weights, divisors, num_keys, output), out_of_range, threads);
}

// Rows have one column, an int64, in place of those of a table.
FailureTuple choose_rows(Call& call, Sequence input, int64_t out_of_range, int threads) {
  input.dims.clear();
  for (const Slot& slot : call.slots) input.dims.push_back(call.tables[slot.table].dim);
  const Batch batch = make_batch(call, input, threads);
  return run_pass([&] { return embedding_kernels().choose_rows(batch, at<int64_t>(out_of_range)); });
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
  m.def("embedding_bag", &look_up_bags, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg());
  m.def("embedding_forward", &forward<Sequence>);
  m.def("embedding_choose_rows", &choose_rows);
  m.def("embedding_weights_grad", &weights_grad);
  m.def("recycled", &recycled);
}

}  // namespace rowwise
