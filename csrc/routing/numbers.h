// One number a row of several tables, by the rows that ids chose.
#pragma once

#include <cstdint>

namespace rowwise {

// Ids of one slot, each a row of a table that has one number a row.
struct Chosen {
  const void* rows;  // int64 or int32
  bool wide_rows;
  int64_t count;
  float* table;
  int64_t size;      // rows of the table
};

// Whether all rows are those of the table; all slots are asked before anything is read or written.
bool rows_fit(const Chosen& slot);

// numbers[i] = the number of row i, times a factor.
void take_numbers(const Chosen& slot, float factor, float* numbers);

// The other way round; without numbers: 0. What comes twice should be the same.
void put_numbers(const Chosen& slot, const float* numbers);

}  // namespace rowwise
