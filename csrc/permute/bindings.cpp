// The permute family: addresses in. The Python side has checked that everything lies inside its tensor.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "address.h"
#include "permute/permute.h"

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

}  // namespace

void bind_permute(nb::module_& m) {
  // `lengths` are (from, how many, to, how many), `rows` are (from, to, bytes a row) one behind the other, of which
  // there are `num_rows` and then `total`; an empty `strides` means `stride` for every key.
  m.def("permute_jagged", [](const Ints& order, int64_t stride, Ints strides, const Ints& sizes, const Ints& lengths,
                             bool wide, const Ints& rows, int64_t num_rows, int64_t total) {
    const int64_t keys = static_cast<int64_t>(sizes.size()), count = static_cast<int64_t>(order.size());
    if (strides.empty()) strides.assign(sizes.size(), stride);
    REQUIRE(lengths.size() == 4 && rows.size() % 3 == 0, "Addresses should come with their sizes.");
    require_keys(order, strides, sizes, lengths[1], num_rows, lengths[3], total);
    const int64_t wrong =
        permute_lengths({at<const char>(lengths[0], lengths[1], "lengths"), at<char>(lengths[2]), wide ? 8 : 4},
                        strides.data(), sizes.data(), keys, order.data(), count);
    REQUIRE(wrong < 0, "`lengths` of key number " + std::to_string(wrong) + " should not be negative, and sum to its " +
                           std::to_string(sizes[wrong]) + " values. Received others.");
    for (size_t i = 0; i + 2 < rows.size(); i += 3) {
      const Column column = {at<const char>(rows[i], num_rows * rows[i + 2], i == 0 ? "values" : "weights"),
                             at<char>(rows[i + 1]), rows[i + 2]};
      permute_rows(column, sizes.data(), keys, order.data(), count);
    }
  });
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
