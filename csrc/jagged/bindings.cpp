// The jagged family: addresses in, numbers out. Short calls keep the GIL: giving it up costs more than they take.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "address.h"
#include "jagged/jagged.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

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
  m.def("lengths_fit", [](int64_t lengths, bool wide, int64_t count, int64_t total) {
    return jagged_kernels().lengths_fit(lengths_at(lengths, wide, count), total);
  });
  m.def("offsets_fit", [](int64_t offsets, bool wide, int64_t count, int64_t total) {
    return count > 0 && jagged_kernels().offsets_fit(offsets_at(offsets, wide, count), total);
  });
  m.def("offsets_of", [](int64_t lengths, bool wide, int64_t count, int64_t offsets) {
    return jagged_kernels().offsets_of(lengths_at(lengths, wide, count), at<void>(offsets));
  });
  m.def("sum_groups", [](int64_t lengths, bool wide, int64_t count, const std::vector<int64_t>& sizes) {
    REQUIRE(sizes_fit(sizes, count), "`sizes` should not be negative, and sum to the number of lengths (" +
                                         std::to_string(count) + "). Received others.");
    std::vector<int64_t> sums(sizes.size());
    require_sound(jagged_kernels().sum_groups(lengths_at(lengths, wide, count), sizes.data(),
                                              static_cast<int64_t>(sizes.size()), sums.data()));
    return to_list(sums);
  });
  m.def("sum_equal_groups", [](int64_t lengths, bool wide, int64_t count, int64_t groups) {
    REQUIRE(groups > 0 ? count % groups == 0 : groups == 0 && count == 0,
            "`groups` should divide the number of lengths (" + std::to_string(count) + "). Received " +
                std::to_string(groups) + ".");
    std::vector<int64_t> sums(static_cast<size_t>(groups));
    require_sound(jagged_kernels().sum_equal_groups(lengths_at(lengths, wide, count), groups ? count / groups : 0, groups,
                                                    sums.data()));
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
