// Rows of features, sorted by the shard that they lie in.
#pragma once

#include <cstdint>

namespace rowwise {

// Rows [first, end) of a slot's table; `base` is the place of `first` where it is sent.
struct Band {
  int64_t slot, first, end, base;
};

// The bags of one slot, and where what is found of them goes.
struct Routing {
  const int64_t* rows;
  int64_t count;          // of rows
  const void* lengths;    // of bags, int64 or int32, summing to `count`
  bool wide_lengths;
  int64_t bags;
  const Band* bands;
  int64_t num_bands;
  int32_t* places;        // of each row, -1: in no band
  int32_t* band_lengths;  // (num_bands, bags)
  int64_t* band_counts;
};

// Whether the lengths are not negative and sum to the rows; all slots are asked before anything is written.
bool lengths_fit(const Routing& slot);

// Writes the lengths and counts of a slot's bands, and into `places` the number of each row's band.
void count_bands(const Routing& slot);

// Writes the rows themselves to `values`, band after band, and puts the place of each in the place of its band's number.
void fill_bands(const Routing& slot, int32_t* values);

}  // namespace rowwise
