#include "routing/routing.h"

#include <cstddef>
#include <vector>

namespace rowwise {
namespace {

int64_t length_of(const Routing& slot, int64_t bag) {
  return slot.wide_lengths ? static_cast<const int64_t*>(slot.lengths)[bag] : static_cast<const int32_t*>(slot.lengths)[bag];
}

// The band that a row lies in, -1: none. Tables are mostly cut evenly: then the first guess is right.
int32_t band_of(const Routing& slot, int64_t row) {
  if (slot.num_bands > 0 && row >= slot.bands[0].first) {
    const int64_t size = slot.bands[0].end - slot.bands[0].first;
    const int64_t guess = size > 0 ? (row - slot.bands[0].first) / size : 0;
    if (guess < slot.num_bands && row >= slot.bands[guess].first && row < slot.bands[guess].end)
      return static_cast<int32_t>(guess);
  }
  for (int64_t b = 0; b < slot.num_bands; ++b) {
    if (row >= slot.bands[b].first && row < slot.bands[b].end) return static_cast<int32_t>(b);
  }
  return -1;
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
  for (int64_t i = 0; i < slot.num_bands * slot.bags; ++i) slot.band_lengths[i] = 0;
  for (int64_t b = 0; b < slot.num_bands; ++b) slot.band_counts[b] = 0;
  int64_t i = 0;
  for (int64_t bag = 0; bag < slot.bags; ++bag) {
    for (const int64_t end = i + length_of(slot, bag); i < end; ++i) {
      const int32_t band = band_of(slot, slot.rows[i]);
      slot.places[i] = band;
      if (band < 0) continue;
      ++slot.band_lengths[band * slot.bags + bag];
      ++slot.band_counts[band];
    }
  }
}

void fill_bands(const Routing& slot, int32_t* values) {
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
