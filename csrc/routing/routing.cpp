#include "routing/routing.h"

#include <cstddef>
#include <vector>

namespace rowwise {
namespace {

int64_t length_of(const Routing& slot, int64_t bag) {
  return slot.wide_lengths ? static_cast<const int64_t*>(slot.lengths)[bag] : static_cast<const int32_t*>(slot.lengths)[bag];
}

// Bands of a slot, and what a band is guessed by: tables are mostly cut evenly. A product, as divisions take long.
struct Guess {
  explicit Guess(const Routing& slot)
      : first(slot.num_bands > 0 ? slot.bands[0].first : 0),
        bands_a_row(slot.num_bands > 0 && slot.bands[0].end > first ? 1.0 / static_cast<double>(slot.bands[0].end - first) : 0) {}

  int64_t first;
  double bands_a_row;
};

// The band that a row lies in, -1: none.
int32_t band_of(const Routing& slot, const Guess& by, int64_t row) {
  if (row >= by.first) {
    const double guessed = static_cast<double>(row - by.first) * by.bands_a_row;
    if (guessed < static_cast<double>(slot.num_bands)) {
      const int64_t guess = static_cast<int64_t>(guessed);
      if (row >= slot.bands[guess].first && row < slot.bands[guess].end) return static_cast<int32_t>(guess);
    }
  }
  for (int64_t b = 0; b < slot.num_bands; ++b) {
    if (row >= slot.bands[b].first && row < slot.bands[b].end) return static_cast<int32_t>(b);
  }
  return -1;
}

// Whether a slot has one band and all rows lie in it, as those of a table do that is whole on one rank.
bool is_one_band(const Routing& slot) {
  if (slot.num_bands != 1) return false;
  bool inside = true;
  for (int64_t i = 0; i < slot.count; ++i) inside &= slot.rows[i] >= slot.bands[0].first && slot.rows[i] < slot.bands[0].end;
  return inside;
}

}  // namespace

bool lengths_fit(const Routing& slot) {
  int64_t left = slot.count;
  for (int64_t bag = 0; bag < slot.bags; ++bag) {
    const int64_t length = length_of(slot, bag);
    if (length < 0 || length > left) return false;
    left -= length;
  }
  return left == 0;
}

void count_bands(const Routing& slot) {
  if (is_one_band(slot)) {
    for (int64_t bag = 0; bag < slot.bags; ++bag) slot.band_lengths[bag] = static_cast<int32_t>(length_of(slot, bag));
    for (int64_t i = 0; i < slot.count; ++i) slot.places[i] = 0;
    slot.band_counts[0] = slot.count;
    return;
  }
  for (int64_t i = 0; i < slot.num_bands * slot.bags; ++i) slot.band_lengths[i] = 0;
  for (int64_t b = 0; b < slot.num_bands; ++b) slot.band_counts[b] = 0;
  const Guess guess(slot);
  int64_t i = 0;
  for (int64_t bag = 0; bag < slot.bags; ++bag) {
    for (const int64_t end = i + length_of(slot, bag); i < end; ++i) {
      const int32_t band = band_of(slot, guess, slot.rows[i]);
      slot.places[i] = band;
      if (band < 0) continue;
      ++slot.band_lengths[band * slot.bags + bag];
      ++slot.band_counts[band];
    }
  }
}

void fill_bands(const Routing& slot, int32_t* values) {
  if (slot.num_bands == 1 && slot.band_counts[0] == slot.count) {
    const int64_t shift = slot.bands[0].base - slot.bands[0].first;
    for (int64_t i = 0; i < slot.count; ++i) values[i] = static_cast<int32_t>(slot.rows[i] + shift);
    for (int64_t i = 0; i < slot.count; ++i) slot.places[i] = static_cast<int32_t>(i);
    return;
  }
  std::vector<int64_t> next(static_cast<size_t>(slot.num_bands) + 1);
  for (int64_t b = 0; b < slot.num_bands; ++b) next[b + 1] = next[b] + slot.band_counts[b];
  for (int64_t i = 0; i < slot.count; ++i) {
    const int32_t b = slot.places[i];
    if (b < 0) continue;
    const int64_t place = next[b]++;
    slot.places[i] = static_cast<int32_t>(place);
    values[place] = static_cast<int32_t>(slot.rows[i] - slot.bands[b].first + slot.bands[b].base);
  }
}

}  // namespace rowwise
