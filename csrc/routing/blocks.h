// Rectangles of numbers, copied from where ranks have sent them to where they belong, and the other way round.
#pragma once

#include <cstdint>

namespace rowwise {

// `rows` times `columns` elements; the rows lie `stride` elements apart.
struct CopyBlock {
  const char* from;
  int64_t from_stride;
  char* to;
  int64_t to_stride;
  int64_t rows, columns;
  bool divides, adds;
};

// Copies blocks of elements of `item` bytes, in their order. With `divides` a float is divided by `divisor`; with `adds`
// it is added to what is there, by a block of as many rows before it in the list: these may lie on each other row by row,
// others may not.
void copy_blocks(const CopyBlock* blocks, int64_t count, int64_t item, float divisor);

}  // namespace rowwise
