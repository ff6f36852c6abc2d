// The routing family: addresses in. The Python side has checked that everything lies inside its tensor.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "address.h"
#include "pieces.h"
#include "routing/blocks.h"
#include "routing/routing.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 31;

void require_bands(const Ints& bands, int64_t slots) {
  REQUIRE(bands.size() % 4 == 0, "`bands` should be four numbers each. Received others.");
  int64_t slot = 0, end = 0;  // of the band before
  for (size_t i = 0; i < bands.size(); i += 4) {
    REQUIRE(i == 0 || bands[i] != slot || bands[i + 1] >= end,
            "`bands` of a slot should be in order, and not overlap. Received others.");
    REQUIRE(bands[i] >= slot && bands[i] < slots && bands[i + 1] >= 0 && bands[i + 2] >= bands[i + 1] && bands[i + 3] >= 0 &&
                bands[i + 2] - bands[i + 1] < kMostRows - bands[i + 3],
            "`bands` should come in order of their slots, and have less than 2 ** 31 rows. Received others.");
    slot = bands[i], end = bands[i + 2];
  }
}

// A block as Python gives it: see `copy_blocks` below.
constexpr size_t kNumbers = 9;
constexpr int64_t kDivides = 1, kAdds = 2;

// The first element of a block in one of some tensors, (address, elements) each, which it has to lie inside of.
char* block_at(const Ints& tensors, const int64_t* place, int64_t rows, int64_t columns, int64_t item) {
  const int64_t number = place[0], start = place[1], stride = place[2];
  REQUIRE(number >= 0 && number < static_cast<int64_t>(tensors.size()) / 2 && start >= 0 && stride >= 0 && rows >= 0 &&
              columns >= 0,
          "`blocks` should name a tensor that there is, and have no negative number. Received others.");
  const int64_t size = tensors[2 * static_cast<size_t>(number) + 1];
  const __int128 last = rows > 0 ? static_cast<__int128>(rows - 1) * stride : 0;
  REQUIRE(rows == 0 || columns == 0 || (start <= size && last + columns <= size - start),
          "`blocks` should lie inside of their tensors. Received one that does not, of tensor number " +
              std::to_string(number) + ".");
  return rows == 0 || columns == 0 ? nullptr : at<char>(tensors[2 * static_cast<size_t>(number)]) + start * item;
}

}  // namespace

void bind_routing(nb::module_& m) {
  // `outputs` are the addresses of values, places, band lengths and band counts.
  m.def("route_rows", [](int64_t rows, int64_t lengths, bool wide, int64_t bags, const Ints& counts, const Ints& bands,
                         const Ints& outputs) {
    const int64_t slots = static_cast<int64_t>(counts.size());
    require_bands(bands, slots);
    int64_t total = 0;
    for (const int64_t count : counts) {
      REQUIRE(count >= 0 && count < kMostRows, "`counts` should be in [0, 2 ** 31). Received others.");
      total += count;
    }
    REQUIRE(outputs.size() == 4, "There should be four outputs.");
    static_assert(sizeof(Band) == 4 * sizeof(int64_t));
    const Band* band = reinterpret_cast<const Band*>(bands.data());
    const Band* const last = band + bands.size() / 4;
    const int64_t* row = at<const int64_t>(rows, total, "rows");
    const char* length = at<const char>(lengths, slots * bags, "lengths");
    int32_t* place = at<int32_t>(outputs[1]);
    int32_t* band_lengths = at<int32_t>(outputs[2]);
    int64_t* band_counts = at<int64_t>(outputs[3]);
    std::vector<Routing> routings;
    for (int64_t s = 0; s < slots; ++s) {
      int64_t num_bands = 0;
      while (band + num_bands < last && band[num_bands].slot == s) ++num_bands;
      routings.push_back({row, counts[s], length, wide, bags, band, num_bands, place, band_lengths, band_counts});
      row += counts[s];
      place += counts[s];
      length += bags * (wide ? 8 : 4);
      band += num_bands;
      band_lengths += num_bands * bags;
      band_counts += num_bands;
    }
    for (int64_t s = 0; s < slots; ++s) {
      REQUIRE(lengths_fit(routings[s]), "`lengths` of slot number " + std::to_string(s) +
                                            " should not be negative, and sum to its " + std::to_string(counts[s]) +
                                            " rows. Received others.");
    }
    nb::gil_scoped_release release;
    const int threads = total * 8 > kSmallWork ? all_threads() : 1;
    in_pieces(threads, slots, [&](int64_t s, int) { count_bands(routings[s]); });
    std::vector<int64_t> starts(static_cast<size_t>(slots) + 1);
    for (int64_t s = 0; s < slots; ++s) {
      starts[s + 1] = starts[s];
      for (int64_t b = 0; b < routings[s].num_bands; ++b) starts[s + 1] += routings[s].band_counts[b];
    }
    int32_t* const values = at<int32_t>(outputs[0]);
    in_pieces(threads, slots, [&](int64_t s, int) { fill_bands(routings[s], values + starts[s]); });
    for (int64_t i = starts[slots]; i < total; ++i) values[i] = -1;  // of rows in no band
  });
  // `inputs` and `outputs` are (address, elements), `blocks` (input, start, stride, output, start, stride, rows, columns,
  // kind) one behind the other: 1 divides, 2 adds. Both take floats.
  m.def("copy_blocks", [](int64_t item, const Ints& inputs, const Ints& outputs, const Ints& blocks, double divisor) {
    REQUIRE(item > 0 && blocks.size() % kNumbers == 0, "`blocks` should be nine numbers each. Received others.");
    std::vector<CopyBlock> copies;
    copies.reserve(blocks.size() / kNumbers);
    for (const int64_t* block = blocks.data(); block < blocks.data() + blocks.size(); block += kNumbers) {
      const int64_t rows = block[6], columns = block[7], kind = block[8];
      REQUIRE(kind >= 0 && kind <= (kDivides | kAdds) && (kind == 0 || item == sizeof(float)),
              "`blocks` should copy, or be of floats. Received others.");
      char* const from = block_at(inputs, block, rows, columns, item);
      char* const to = block_at(outputs, block + 3, rows, columns, item);
      if (rows > 0 && columns > 0)
        copies.push_back({from, block[2], to, block[5], rows, columns, (kind & kDivides) != 0, (kind & kAdds) != 0});
    }
    nb::gil_scoped_release release;
    copy_blocks(copies.data(), static_cast<int64_t>(copies.size()), item, static_cast<float>(divisor));
  });
}

}  // namespace rowwise
