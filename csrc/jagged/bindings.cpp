// The jagged family: addresses in, numbers out. Short calls keep the GIL: giving it up costs more than they take.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "address.h"
#include "jagged/jagged.h"
#include "tensor.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

Integers integers_at(nb::handle tensor, const char* name) {
  const TensorView view = integers_of(tensor, name);
  return {view.data, view.bits == 64, view.shape[0]};
}

// Whether these are a list of strings, at least one, no two of them equal, whose number divides `bags`. Strings keep their
// hash, so that to enter them in a table takes 5 ns a key.
bool are_distinct_strings(nb::handle keys, int64_t bags) {
  if (!PyList_CheckExact(keys.ptr())) return false;
  const size_t count = static_cast<size_t>(PyList_GET_SIZE(keys.ptr()));
  if (count == 0 || bags % static_cast<int64_t>(count) != 0) return false;
  size_t slots = 64;
  while (slots < 2 * count) slots *= 2;
  PyObject* few[64] = {};
  std::vector<PyObject*> many(slots > 64 ? slots : 0);
  PyObject** table = many.empty() ? few : many.data();
  for (size_t i = 0; i < count; ++i) {
    PyObject* key = PyList_GET_ITEM(keys.ptr(), static_cast<Py_ssize_t>(i));
    if (!PyUnicode_CheckExact(key)) return false;
    size_t slot = static_cast<size_t>(PyObject_Hash(key)) & (slots - 1);
    for (; table[slot] != nullptr; slot = (slot + 1) & (slots - 1)) {
      if (table[slot] == key || PyUnicode_Compare(table[slot], key) == 0) return false;
    }
    table[slot] = key;
  }
  return true;
}

Integers lengths_at(int64_t address, bool wide, int64_t count) {
  return {at<const void>(address, count, "lengths"), wide, count};
}

// `count` is at least 1: who has no offsets has no bags.
Integers offsets_at(int64_t address, bool wide, int64_t count) {
  REQUIRE(count > 0, "`offsets` should be one more than there are bags. Received none.");
  return {at<const void>(address, count, "offsets"), wide, count};
}

// Sums of lengths: where these are bad, all of them are.
void require_sound(bool sound) {
  REQUIRE(sound, "`lengths` should not be negative, and sum to less than 2**63. Received others.");
}

Integers bags_at(int64_t address, bool wide, int64_t count) { return {at<const void>(address, count, "bags"), wide, count}; }

// `sizes` sum to the number of samples.
SampleSelection selection_at(int64_t lengths, bool wide, int64_t keys, int64_t stride, int64_t samples, bool wide_samples,
                             int64_t num_samples, const Ints& sizes) {
  REQUIRE(sizes_fit(sizes, num_samples), "`sizes` should not be negative, and sum to the number of samples (" +
                                             std::to_string(num_samples) + "). Received others.");
  return {lengths_at(lengths, wide, keys * stride),
          keys,
          stride,
          {at<const void>(samples, num_samples, "samples"), wide_samples, num_samples},
          sizes.data(),
          static_cast<int64_t>(sizes.size())};
}

nb::list to_list(const std::vector<int64_t>& numbers) {
  nb::list list = nb::steal<nb::list>(PyList_New(static_cast<Py_ssize_t>(numbers.size())));
  for (size_t i = 0; i < numbers.size(); ++i) {
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(numbers[i]));
  }
  return list;
}

}  // namespace

void bind_jagged(nb::module_& m) {
  // Whether the parts of bags are seen to fit one another, whatever is handed over: a list of distinct strings,
  // values, weights or None, and lengths or offsets, as many for each key. False also where somebody has to look closely.
  m.def("bags_fit", [](nb::handle keys, nb::handle values, nb::handle weights, nb::handle lengths, nb::handle offsets) {
    const bool by_lengths = offsets.is_none();
    const nb::handle bounds = by_lengths ? lengths : offsets;
    if ((!by_lengths && !lengths.is_none()) || !is_plain_type(values) || !is_plain_type(bounds)) return false;
    TensorView rows, factors, numbers;
    if (!read_tensor(values, rows) || rows.dims == 0 || !read_integers(bounds, numbers)) return false;
    if (!weights.is_none() && !(is_plain_type(weights) && read_tensor(weights, factors) && factors.dims > 0 &&
                                factors.shape[0] == rows.shape[0])) {
      return false;
    }
    const Integers integers = {numbers.data, numbers.bits == 64, numbers.shape[0]};
    const int64_t bags = integers.count - (by_lengths ? 0 : 1);
    if (bags < 0 || !are_distinct_strings(keys, bags)) return false;
    const auto fit = by_lengths ? jagged_kernels().lengths_fit : jagged_kernels().offsets_fit;
    return fit(integers, rows.shape[0]);
  }, nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none());
  m.def("are_distinct_strings", [](nb::handle keys) { return are_distinct_strings(keys, 0); });
  m.def("lengths_fit", [](nb::handle lengths, int64_t total) {
    return jagged_kernels().lengths_fit(integers_at(lengths, "lengths"), total);
  });
  m.def("offsets_fit", [](nb::handle offsets, int64_t total) {
    const Integers integers = integers_at(offsets, "offsets");
    return integers.count > 0 && jagged_kernels().offsets_fit(integers, total);
  });
  m.def("offsets_of", [](nb::handle lengths, nb::handle offsets) {
    const Integers from = integers_at(lengths, "lengths"), to = integers_at(offsets, "offsets");
    REQUIRE(to.wide == from.wide && to.count == from.count + 1, "`offsets` should be one more than `lengths`, of the same dtype.");
    return jagged_kernels().offsets_of(from, const_cast<void*>(to.data));
  });
  m.def("sum_groups", [](nb::handle lengths, const std::vector<int64_t>& sizes) {
    const Integers integers = integers_at(lengths, "lengths");
    REQUIRE(sizes_fit(sizes, integers.count), "`sizes` should not be negative, and sum to the number of lengths (" +
                                                  std::to_string(integers.count) + "). Received others.");
    std::vector<int64_t> sums(sizes.size());
    require_sound(jagged_kernels().sum_groups(integers, sizes.data(), static_cast<int64_t>(sizes.size()), sums.data()));
    return to_list(sums);
  });
  m.def("sum_equal_groups", [](nb::handle lengths, int64_t groups) {
    const Integers integers = integers_at(lengths, "lengths");
    const int64_t count = integers.count;
    REQUIRE(groups > 0 ? count % groups == 0 : groups == 0 && count == 0,
            "`groups` should divide the number of lengths (" + std::to_string(count) + "). Received " +
                std::to_string(groups) + ".");
    std::vector<int64_t> sums(static_cast<size_t>(groups));
    require_sound(jagged_kernels().sum_equal_groups(integers, groups ? count / groups : 0, groups, sums.data()));
    return to_list(sums);
  });
  m.def("take_lengths", [](int64_t lengths, bool wide, int64_t count, int64_t bags, bool wide_bags, int64_t num_bags,
                           int64_t taken) {
    nb::gil_scoped_release release;
    return take_lengths(lengths_at(lengths, wide, count), bags_at(bags, wide_bags, num_bags), at<void>(taken));
  });
  m.def("take_rows", [](int64_t lengths, bool wide, int64_t count, int64_t bags, bool wide_bags, int64_t num_bags,
                        int64_t rows, int64_t num_rows, int64_t row_bytes, int64_t taken) {
    nb::gil_scoped_release release;
    take_rows(lengths_at(lengths, wide, count), bags_at(bags, wide_bags, num_bags), at<const char>(rows, num_rows * row_bytes, "values"), row_bytes,
              at<char>(taken));
  });
  m.def("take_sample_lengths", [](int64_t lengths, bool wide, int64_t keys, int64_t stride, int64_t samples,
                                  bool wide_samples, int64_t num_samples, const std::vector<int64_t>& sizes,
                                  int64_t num_rows, int64_t taken) {
    nb::gil_scoped_release release;
    return take_sample_lengths(
        selection_at(lengths, wide, keys, stride, samples, wide_samples, num_samples, sizes), num_rows, at<void>(taken));
  });
  m.def("take_sample_rows", [](int64_t lengths, bool wide, int64_t keys, int64_t stride, int64_t samples,
                               bool wide_samples, int64_t num_samples, const std::vector<int64_t>& sizes,
                               int64_t lengths_taken, int64_t rows, int64_t num_rows, int64_t row_bytes, int64_t taken) {
    nb::gil_scoped_release release;
    take_sample_rows(selection_at(lengths, wide, keys, stride, samples, wide_samples, num_samples, sizes),
                     at<const void>(lengths_taken), at<const char>(rows, num_rows * row_bytes, "values"), row_bytes, at<char>(taken));
  });
  m.def("to_padded", [](int64_t offsets, bool wide, int64_t bags, int64_t rows, int64_t num_rows, int64_t row_bytes,
                        int64_t width, int64_t padded) {
    nb::gil_scoped_release release;
    to_padded(offsets_at(offsets, wide, bags + 1), at<const char>(rows, num_rows * row_bytes, "values"), row_bytes, width, at<char>(padded));
  });
  m.def("from_padded", [](int64_t offsets, bool wide, int64_t bags, int64_t padded, int64_t row_bytes, int64_t width,
                          int64_t rows) {
    nb::gil_scoped_release release;
    from_padded(offsets_at(offsets, wide, bags + 1), at<const char>(padded, bags * width * row_bytes, "padded"), row_bytes, width, at<char>(rows));
  });
}

}  // namespace rowwise
