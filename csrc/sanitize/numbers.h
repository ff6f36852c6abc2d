// Numbers of the types that tables are stored in, one at a time.
#pragma once

#include <cstring>
#include <vector>

#include "check.h"
#include "embedding/embedding.h"

#define ROWWISE_ISA baseline
#include "block.h"

namespace rowwise {

const Float kFloats[] = {Float::f32, Float::f32, Float::f16, Float::bf16};

inline int64_t size_of(Float dtype) { return dtype == Float::f32 ? 4 : 2; }

inline float read(Float dtype, const char* data, int64_t i) {
  float f32;
  Half f16;
  Bfloat16 bf16;
  switch (dtype) {
    case Float::f32: return std::memcpy(&f32, data + i * 4, 4), f32;
    case Float::f16: return std::memcpy(&f16, data + i * 2, 2), baseline::to_float(f16);
    case Float::bf16: return std::memcpy(&bf16, data + i * 2, 2), baseline::to_float(bf16);
  }
  return 0;
}

inline void write(Float dtype, char* data, int64_t i, float value) {
  Half f16;
  Bfloat16 bf16;
  switch (dtype) {
    case Float::f32: std::memcpy(data + i * 4, &value, 4); return;
    case Float::f16: baseline::from_float(value, &f16); std::memcpy(data + i * 2, &f16, 2); return;
    case Float::bf16: baseline::from_float(value, &bf16); std::memcpy(data + i * 2, &bf16, 2); return;
  }
}

inline std::vector<char> random_numbers(Random& random, Float dtype, int64_t count) {
  std::vector<char> data(static_cast<size_t>(count * size_of(dtype)));
  for (int64_t i = 0; i < count; ++i) write(dtype, data.data(), i, random.number());
  return data;
}

inline float rounded(Float dtype, float x) {
  char data[4];
  write(dtype, data, 0, x);
  return read(dtype, data, 0);
}

}  // namespace rowwise
