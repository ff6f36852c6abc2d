// Tables of few bits a number, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "address.h"
#include "embedding/call.h"
#include "quant/quant.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

// What an error is about: a tensor by its name, or the weight of a table by its number. Put together only where it is needed.
struct Subject {
  const char* name;
  int64_t number = -1;

  std::string operator+(const char* rest) const {
    return number < 0 ? std::string(name) + rest : name + std::to_string(number) + rest;
  }
};

RowLayout layout_of(int64_t format, int64_t row_bytes, int64_t dim, const Subject& what) {
  REQUIRE(format >= 0 && format <= static_cast<int64_t>(Format::int2),
          what + " should have a format that there is. Received " + std::to_string(format) + ".");
  const RowLayout layout = {static_cast<Format>(format), row_bytes};
  REQUIRE(dim >= 0 && dim < int64_t{1} << 40 && row_bytes >= least_row_bytes(layout.format, dim) &&
              (has_codes(layout.format) || row_bytes % (bits_of(layout.format) / 8) == 0),
          what + " should have rows of " + std::to_string(least_row_bytes(layout.format, dim)) + " bytes or more, whole numbers. Received " +
              std::to_string(row_bytes) + ".");
  return layout;
}

const uint8_t* rows_of(nb::handle tensor, const Subject& what, TensorView& view) {
  if (!read_tensor(tensor, view)) refuse_unreadable(tensor, what + "");
  REQUIRE(view.kind == 1 && view.bits == 8 && view.dims == 2 && view.is_contiguous(),
          what + " should be rows of bytes: uint8 with two dimensions, contiguous. Received " + dtype_of(tensor) + " with " +
              std::to_string(view.dims) + ".");
  return static_cast<const uint8_t*>(view.data);
}

// Tables whose weights are rows of bytes.
struct QuantTables {
  Call call;
  std::vector<RowLayout> layouts;

  QuantTables(nb::handle spec, nb::sequence weights, const Ints& formats) : call(spec) {
    const size_t count = call.tables.size();
    REQUIRE(nb::len(weights) == count && formats.size() == count,
            "`weights` and `formats` should be one a table (" + std::to_string(count) + "). Received " +
                std::to_string(nb::len(weights)) + " and " + std::to_string(formats.size()) + ".");
    layouts.reserve(count);
    size_t t = 0;
    for (nb::handle weight : weights) {
      Table& table = call.tables[t];
      const Subject what = {"The weight of table number ", static_cast<int64_t>(t)};
      TensorView view;
      table.weight = const_cast<uint8_t*>(rows_of(weight, what, view));
      layouts.push_back(layout_of(formats[t], view.shape[1], table.dim, what));
      REQUIRE(view.shape[0] == table.rows, what + " should have " + std::to_string(table.rows) + " rows, as configured. Received " +
                                               std::to_string(view.shape[0]) + ".");
      const Format format = layouts.back().format;
      REQUIRE(has_codes(format) || reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(bits_of(format) / 8) == 0,
              what + " should begin where its numbers can. Received an odd address.");
      ++t;
    }
  }
};

template <class Input>
FailureTuple forward(QuantTables tables, const Input& input, int64_t out_of_range, int threads) {
  const Batch batch = make_batch(tables.call, input, threads);
  clear_gaps(tables.call, input);
  return run_pass([&] { return quant_kernels().forward(batch, tables.layouts.data(), at<int64_t>(out_of_range)); });
}

FailureTuple look_up_bags(nb::handle spec, nb::sequence weights, const Ints& formats, nb::object values, nb::object offsets,
                          nb::object sample_weights, int64_t num_keys, nb::object output, int64_t out_of_range, int threads) {
  QuantTables tables(spec, weights, formats);
  return forward(std::move(tables), Pooled(values, offsets, sample_weights, nb::none(), num_keys, output), out_of_range, threads);
}

FailureTuple look_up_sequences(nb::handle spec, nb::sequence weights, const Ints& formats, const Sequence& input,
                               int64_t out_of_range, int threads) {
  return forward(QuantTables(spec, weights, formats), input, out_of_range, threads);
}

int64_t quantize(nb::handle weight, nb::handle bounds, int64_t format, nb::handle rows, int threads) {
  TensorView of_weight, of_rows, of_bounds;
  if (!read_tensor(weight, of_weight)) refuse_unreadable(weight, "`weight`");
  const std::optional<Float> dtype = float_of(of_weight);
  REQUIRE(dtype && of_weight.dims == 2 && of_weight.is_contiguous(), "`weight` should be a contiguous matrix of floats. Received others.");
  const Matrix matrix = {of_weight.data, *dtype, of_weight.shape[0], of_weight.shape[1]};
  uint8_t* to = const_cast<uint8_t*>(rows_of(rows, {"`rows`"}, of_rows));
  const RowLayout layout = layout_of(format, of_rows.shape[1], matrix.dim, {"`rows`"});
  REQUIRE(of_rows.shape[0] == matrix.rows, "`rows` should be as many as those of the weight.");
  const float* within = nullptr;
  if (!bounds.is_none()) {
    if (!read_tensor(bounds, of_bounds)) refuse_unreadable(bounds, "`bounds`");
    REQUIRE(of_bounds.kind == 2 && of_bounds.bits == 32 && of_bounds.dims == 2 && of_bounds.shape[0] == matrix.rows &&
                of_bounds.shape[1] == 2 && of_bounds.is_contiguous(),
            "`bounds` should be two float32 a row. Received others.");
    within = static_cast<const float*>(of_bounds.data);
  }
  nb::gil_scoped_release release;
  return quant_kernels().quantize(matrix, within, layout, to, threads);
}

void dequantize(nb::handle rows, int64_t format, int64_t weight, int64_t dim, int threads) {
  TensorView view;
  const uint8_t* from = rows_of(rows, {"`rows`"}, view);
  const RowLayout layout = layout_of(format, view.shape[1], dim, {"`rows`"});
  REQUIRE(has_codes(layout.format) || reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(bits_of(layout.format) / 8) == 0,
          "`rows` should begin where their numbers can. Received an odd address.");
  nb::gil_scoped_release release;
  quant_kernels().dequantize(from, layout, view.shape[0], dim, at<float>(weight), threads);
}

}  // namespace

void bind_quant(nb::module_& m) {
  m.def("quantized_bag", &look_up_bags, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(),
        nb::arg(), nb::arg());
  m.def("quantized_sequence", &look_up_sequences);
  m.def("quantize_rows", &quantize, nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg());
  m.def("dequantize_rows", &dequantize);
}

}  // namespace rowwise
