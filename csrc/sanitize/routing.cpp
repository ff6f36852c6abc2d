#include "routing/routing.h"

#include "check.h"
#include "routing/blocks.h"

namespace rowwise {
namespace {

// Rows of one slot, in bands that leave gaps between them, against a plain loop.
void test_slot(Random& random, int64_t bags, int64_t most_bands) {
  std::vector<Band> bands;
  int64_t end = random.below(3);
  for (int64_t b = random.below(most_bands + 1); b > 0; --b) {
    const int64_t first = end + random.below(3);
    end = first + random.below(6);
    bands.push_back({0, first, end, random.below(4)});
  }
  std::vector<int64_t> lengths, rows;
  for (int64_t bag = 0; bag < bags; ++bag) {
    lengths.push_back(random.below(4));
    for (int64_t i = 0; i < lengths.back(); ++i) rows.push_back(random.below(end + 4) - 1);
  }
  const IntegerArray held(lengths, random.coin());
  const size_t size = rows.size(), num_bands = bands.size();
  std::vector<int32_t> places(size), values(size), band_lengths(num_bands * static_cast<size_t>(bags), 7);
  std::vector<int64_t> band_counts(num_bands, 7);
  Routing slot{rows.data(), static_cast<int64_t>(size), held.data(), held.wide, bags, bands.data(),
               static_cast<int64_t>(num_bands), places.data(), band_lengths.data(), band_counts.data()};
  CHECK(lengths_fit(slot));
  count_bands(slot);
  fill_bands(slot, values.data());

  std::vector<int32_t> expected(size, -1);
  size_t sent = 0;
  for (size_t b = 0; b < num_bands; ++b) {
    const size_t before = sent;
    size_t i = 0;
    for (size_t bag = 0; bag < static_cast<size_t>(bags); ++bag) {
      int32_t length = 0;
      for (int64_t k = 0; k < lengths[bag]; ++k, ++i) {
        if (rows[i] < bands[b].first || rows[i] >= bands[b].end) continue;
        CHECK(values[sent] == rows[i] - bands[b].first + bands[b].base);
        expected[i] = static_cast<int32_t>(sent++);
        ++length;
      }
      CHECK(band_lengths[b * static_cast<size_t>(bags) + bag] == length);
    }
    CHECK(band_counts[b] == static_cast<int64_t>(sent - before));
  }
  CHECK(places == expected);
  ++slot.count;
  CHECK(!lengths_fit(slot));
}

// Columns of one matrix, in memory of exactly their size, against a plain loop.
void test_blocks(Random& random, int64_t rows, float divisor) {
  const int64_t width = random.below(40) + 1, first = random.below(width), columns = random.below(width - first + 1);
  std::vector<float> from(static_cast<size_t>(rows * width)), to(static_cast<size_t>(rows * columns), 3);
  for (float& x : from) x = random.number();
  std::vector<float> expected = to;
  std::vector<CopyBlock> blocks;
  for (int64_t left = random.below(3); left >= 0 && rows > 0; --left) {
    const bool divides = random.coin(), adds = random.coin();
    blocks.push_back({reinterpret_cast<const char*>(from.data() + first), width, reinterpret_cast<char*>(to.data()), columns,
                      rows, columns, divides, adds});
    for (int64_t i = 0; i < rows * columns; ++i) {
      const float x = from[static_cast<size_t>(i / columns * width + first + i % columns)];
      float& y = expected[static_cast<size_t>(i)];
      y = (adds ? y : 0) + (divides ? x / divisor : x);
    }
  }
  copy_blocks(blocks.data(), static_cast<int64_t>(blocks.size()), 4, divisor);
  CHECK(to == expected);
}

}  // namespace

void test_routing() {
  Random random(9);
  for (int64_t repeat = 0; repeat < 100; ++repeat) test_blocks(random, random.below(9), static_cast<float>(repeat % 5 + 1));
  test_blocks(random, 5000, 2);
  for (int repeat = 0; repeat < 300; ++repeat) test_slot(random, random.below(9), random.below(6));
}

}  // namespace rowwise
