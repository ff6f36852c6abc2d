// The jagged family: addresses in, numbers out. Short calls keep the GIL: giving it up costs more than they take.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "jagged/jagged.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

template <class T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

Integers integers(int64_t address, bool wide, int64_t count) { return {at<const void>(address), wide, count}; }

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
    return jagged_kernels().lengths_fit(integers(lengths, wide, count), total);
  });
  m.def("offsets_fit", [](int64_t offsets, bool wide, int64_t count, int64_t total) {
    return jagged_kernels().offsets_fit(integers(offsets, wide, count), total);
  });
  m.def("offsets_of", [](int64_t lengths, bool wide, int64_t count, int64_t offsets) {
    return jagged_kernels().offsets_of(integers(lengths, wide, count), at<void>(offsets));
  });
  m.def("sum_groups", [](int64_t lengths, bool wide, int64_t count, const std::vector<int64_t>& sizes) {
    std::vector<int64_t> sums(sizes.size());
    jagged_kernels().sum_groups(integers(lengths, wide, count), sizes.data(), static_cast<int64_t>(sizes.size()),
                                sums.data());
    return to_list(sums);
  });
  m.def("sum_equal_groups", [](int64_t lengths, bool wide, int64_t size, int64_t groups) {
    std::vector<int64_t> sums(static_cast<size_t>(groups));
    jagged_kernels().sum_equal_groups(integers(lengths, wide, size * groups), size, groups, sums.data());
    return to_list(sums);
  });
  m.def("take_lengths", [](int64_t lengths, bool wide, int64_t count, int64_t bags, bool wide_bags, int64_t num_bags,
                           int64_t taken) {
    nb::gil_scoped_release release;
    return take_lengths(integers(lengths, wide, count), integers(bags, wide_bags, num_bags), at<void>(taken));
  });
  m.def("take_rows", [](int64_t lengths, bool wide, int64_t count, int64_t bags, bool wide_bags, int64_t num_bags,
                        int64_t rows, int64_t row_bytes, int64_t taken) {
    nb::gil_scoped_release release;
    take_rows(integers(lengths, wide, count), integers(bags, wide_bags, num_bags), at<const char>(rows), row_bytes,
              at<char>(taken));
  });
  m.def("take_sample_lengths", [](int64_t lengths, bool wide, int64_t keys, int64_t stride, int64_t samples,
                                  bool wide_samples, int64_t num_samples, const std::vector<int64_t>& sizes,
                                  int64_t num_rows, int64_t taken) {
    nb::gil_scoped_release release;
    return take_sample_lengths({integers(lengths, wide, keys * stride), keys, stride,
                                integers(samples, wide_samples, num_samples), sizes.data(),
                                static_cast<int64_t>(sizes.size())},
                               num_rows, at<void>(taken));
  });
  m.def("take_sample_rows", [](int64_t lengths, bool wide, int64_t keys, int64_t stride, int64_t samples,
                               bool wide_samples, int64_t num_samples, const std::vector<int64_t>& sizes,
                               int64_t lengths_taken, int64_t rows, int64_t row_bytes, int64_t taken) {
    nb::gil_scoped_release release;
    take_sample_rows({integers(lengths, wide, keys * stride), keys, stride,
                      integers(samples, wide_samples, num_samples), sizes.data(),
                      static_cast<int64_t>(sizes.size())},
                     at<const void>(lengths_taken), at<const char>(rows), row_bytes, at<char>(taken));
  });
  m.def("to_padded", [](int64_t offsets, bool wide, int64_t bags, int64_t rows, int64_t row_bytes, int64_t width,
                        int64_t padded) {
    nb::gil_scoped_release release;
    to_padded(integers(offsets, wide, bags + 1), at<const char>(rows), row_bytes, width, at<char>(padded));
  });
  m.def("from_padded", [](int64_t offsets, bool wide, int64_t bags, int64_t padded, int64_t row_bytes, int64_t width,
                          int64_t rows) {
    nb::gil_scoped_release release;
    from_padded(integers(offsets, wide, bags + 1), at<const char>(padded), row_bytes, width, at<char>(rows));
  });
}

}  // namespace rowwise
