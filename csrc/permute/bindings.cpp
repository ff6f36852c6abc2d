// The permute family: addresses in. The Python side has checked that everything lies inside its tensor.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "address.h"
#include "permute/permute.h"
#include "tensor.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

// What keeps a permutation within its tensors: `order` names keys, and their sizes are those of the lengths and rows at
// hand and of what is taken. The sums of lengths are compared where these are read, in permute_lengths.
void require_keys(const Ints& order, const Ints& strides, const Ints& sizes, int64_t num_lengths, int64_t num_rows,
                  int64_t bags, int64_t total) {
  const int64_t keys = static_cast<int64_t>(sizes.size());
  __int128 bags_left = bags, left = total;  // a key may be taken any number of times
  REQUIRE(strides.size() == sizes.size() && sizes_fit(strides, num_lengths),
          "`strides` should not be negative, be one for each of " + std::to_string(keys) +
              " keys, and sum to the number of lengths (" + std::to_string(num_lengths) + "). Received others.");
  REQUIRE(sizes_fit(sizes, num_rows), "`sizes` should not be negative, and sum to the number of values (" +
                                          std::to_string(num_rows) + "). Received others.");
  for (const int64_t key : order) {
    if (key < 0 || key >= keys) {
      refuse_position("`order` should hold positions in [0, " + std::to_string(keys) + "). Received " +
                      std::to_string(key) + ".");
    }
    bags_left -= strides[key];
    left -= sizes[key];
  }
  REQUIRE(bags_left == 0 && left == 0, "`total` should be the number of values taken. Received another.");
}

// Rows of a contiguous tensor of any dtype.
struct Rows {
  char* data;
  int64_t count, bytes;
};

Rows rows_of(nb::handle tensor, const char* name) {
  TensorView view;
  const std::string what = std::string("`") + name + "`";
  if (!read_tensor(tensor, view)) refuse_unreadable(tensor, what);
  REQUIRE(view.dims > 0 && view.is_contiguous() && view.bits % 8 == 0,
          what + " should have one dimension or more, contiguous, of whole bytes. Received another tensor.");
  int64_t bytes = view.bits / 8 * view.lanes;
  for (int32_t i = 1; i < view.dims; ++i) bytes *= view.shape[i];
  return {static_cast<char*>(view.data), view.shape[0], bytes};
}

Column column_of(const Rows& from, const Rows& to) {
  REQUIRE(from.bytes == to.bytes, "Rows should have the size of those they are taken to.");
  return {from.data, to.data, from.bytes};
}

}  // namespace

void bind_permute(nb::module_& m) {
  // `taken` and `out` (and `out_weights`, None without weights) have the sizes of what is taken; an empty `strides` means
  // `stride` for every key.
  m.def("permute_jagged", [](const Ints& order, int64_t stride, Ints strides, const Ints& sizes, nb::handle lengths,
                             nb::handle taken, nb::handle values, nb::handle out, nb::handle weights, nb::handle out_weights) {
    const int64_t keys = static_cast<int64_t>(sizes.size()), count = static_cast<int64_t>(order.size());
    if (strides.empty()) strides.assign(sizes.size(), stride);
    const TensorView from = integers_of(lengths, "lengths"), to = integers_of(taken, "taken");
    REQUIRE(from.bits == to.bits, "`taken` should have the dtype of `lengths`. Received another.");
    const Rows rows = rows_of(values, "values"), rows_taken = rows_of(out, "values");
    require_keys(order, strides, sizes, from.shape[0], rows.count, to.shape[0], rows_taken.count);
    const int64_t wrong = permute_lengths({static_cast<const char*>(from.data), static_cast<char*>(to.data), from.bits / 8},
                                          strides.data(), sizes.data(), keys, order.data(), count);
    REQUIRE(wrong < 0, "`lengths` of key number " + std::to_string(wrong) + " should not be negative, and sum to its " +
                           std::to_string(sizes[wrong]) + " values. Received others.");
    permute_rows(column_of(rows, rows_taken), sizes.data(), keys, order.data(), count);
    if (weights.is_none()) return;
    const Rows factors = rows_of(weights, "weights"), factors_taken = rows_of(out_weights, "weights");
    REQUIRE(factors.count == rows.count && factors_taken.count == rows_taken.count,
            "`weights` should be as many as the values (" + std::to_string(rows.count) + "). Received " +
                std::to_string(factors.count) + ".");
    permute_rows(column_of(factors, factors_taken), sizes.data(), keys, order.data(), count);
  }, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none());
  // Columns of `item` bytes. `inputs` and `outputs` are (address, columns), `pieces` (input, first column, columns) one
  // behind the other; `counts` says how many pieces each output has. False if a piece does not lie in its input.
  m.def("regroup", [](int64_t item, const Ints& inputs, Ints pieces, const Ints& counts, const Ints& outputs,
                      int64_t rows) {
    const int64_t num_inputs = static_cast<int64_t>(inputs.size()) / 2;
    REQUIRE(pieces.size() % 3 == 0 && sizes_fit(counts, static_cast<int64_t>(pieces.size()) / 3) &&
                outputs.size() == 2 * counts.size(),
            "`counts` should sum to the number of pieces (" + std::to_string(pieces.size() / 3) +
                "), and not be negative. Received others.");
    std::vector<Matrix> matrices;
    for (size_t i = 0; i + 1 < inputs.size(); i += 2) {
      matrices.push_back({at<char>(inputs[i], rows * inputs[i + 1], "inputs"), inputs[i + 1] * item});
    }
    for (size_t g = 0, i = 0; g < counts.size(); ++g) {
      int64_t left = outputs[2 * g + 1];
      for (const size_t end = i + 3 * static_cast<size_t>(counts[g]); i < end; i += 3) {
        const int64_t input = pieces[i], start = pieces[i + 1], columns = pieces[i + 2];
        if (input >= num_inputs || start < 0 || columns < 0 || columns > left) return false;
        if (input >= 0 && columns > inputs[2 * input + 1] - start) return false;
        left -= columns;
        pieces[i + 1] = input < 0 ? 0 : start * item;
        pieces[i + 2] = columns * item;
      }
      if (left != 0) return false;
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
