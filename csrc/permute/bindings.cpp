// The permute family: addresses in. The Python side has checked that everything lies inside its tensor.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "permute/permute.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

using Ints = std::vector<int64_t>;

template <class T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

}  // namespace

void bind_permute(nb::module_& m) {
  // `lengths` and `rows` are (from, to, bytes a row) one behind the other; an empty `strides` means `stride` for every
  // key.
  m.def("permute_jagged", [](const Ints& order, int64_t stride, Ints strides, const Ints& sizes, const Ints& lengths,
                             const Ints& rows) {
    const int64_t keys = static_cast<int64_t>(sizes.size()), count = static_cast<int64_t>(order.size());
    if (strides.empty()) strides.assign(sizes.size(), stride);
    permute_rows({at<const char>(lengths[0]), at<char>(lengths[1]), lengths[2]}, strides.data(), keys, order.data(),
                 count);
    for (size_t i = 0; i + 2 < rows.size(); i += 3) {
      permute_rows({at<const char>(rows[i]), at<char>(rows[i + 1]), rows[i + 2]}, sizes.data(), keys, order.data(),
                   count);
    }
  });
  // Columns of `item` bytes. `inputs` and `outputs` are (address, columns), `pieces` (input, first column, columns) one
  // behind the other; `counts` says how many pieces each output has. False if a piece does not lie in its input.
  m.def("regroup", [](int64_t item, const Ints& inputs, Ints pieces, const Ints& counts, const Ints& outputs,
                      int64_t rows) {
    const int64_t num_inputs = static_cast<int64_t>(inputs.size()) / 2;
    std::vector<Matrix> matrices;
    for (size_t i = 0; i < inputs.size(); i += 2) matrices.push_back({at<char>(inputs[i]), inputs[i + 1] * item});
    for (size_t i = 0; i + 2 < pieces.size(); i += 3) {
      const int64_t input = pieces[i], start = pieces[i + 1], columns = pieces[i + 2];
      if (input >= num_inputs || start < 0 || columns < 0) return false;
      if (input >= 0 && start + columns > inputs[2 * input + 1]) return false;
      pieces[i + 1] = start * item;
      pieces[i + 2] = columns * item;
    }
    nb::gil_scoped_release release;
    static_assert(sizeof(Piece) == 3 * sizeof(int64_t));
    const Piece* piece = reinterpret_cast<const Piece*>(pieces.data());
    for (size_t g = 0; g < counts.size(); piece += counts[g++]) {
      regroup(matrices.data(), piece, counts[g], {at<char>(outputs[2 * g]), outputs[2 * g + 1] * item}, rows);
    }
    return true;
  });
}

}  // namespace rowwise
