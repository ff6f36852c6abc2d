#include "routing/numbers.h"

namespace rowwise {
namespace {

template <class Body>
void for_rows(const Chosen& slot, const Body& body) {
  if (slot.wide_rows) {
    const int64_t* rows = static_cast<const int64_t*>(slot.rows);
    for (int64_t i = 0; i < slot.count; ++i) body(i, rows[i]);
  } else {
    const int32_t* rows = static_cast<const int32_t*>(slot.rows);
    for (int64_t i = 0; i < slot.count; ++i) body(i, rows[i]);
  }
}

}  // namespace

bool rows_fit(const Chosen& slot) {
  bool inside = true;
  for_rows(slot, [&](int64_t, int64_t row) { inside &= row >= 0 && row < slot.size; });
  return inside;
}

void take_numbers(const Chosen& slot, float factor, float* numbers) {
  for_rows(slot, [&](int64_t i, int64_t row) { numbers[i] = slot.table[row] * factor; });
}

void put_numbers(const Chosen& slot, const float* numbers) {
  if (numbers == nullptr) {
    for_rows(slot, [&](int64_t, int64_t row) { slot.table[row] = 0; });
  } else {
    for_rows(slot, [&](int64_t i, int64_t row) { slot.table[row] = numbers[i]; });
  }
}

}  // namespace rowwise
