// What the driver's tests share: a check that stays in every build, random numbers, and the families.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "cpu.h"

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);    \
      std::abort();                                                           \
    }                                                                         \
  } while (false)

namespace rowwise {

void test_collision();
void test_embedding();
void test_jagged();
void test_permute();
void test_quant();
void test_routing();
void test_signals();
void test_interaction();
void test_linear();
void test_metrics();
void test_hash_collision();
void test_hashing();

// The same numbers in every run.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}

  int64_t below(int64_t n) {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<int64_t>((state_ >> 11) % static_cast<uint64_t>(n));
  }

  bool coin() { return below(2) == 1; }

  template <class T, size_t n>
  T among(const T (&choices)[n]) {
    return choices[below(static_cast<int64_t>(n))];
  }

  // An eighth of an integer, exact in every type of a table.
  float number() { return static_cast<float>(below(129) - 64) / 8; }

 private:
  uint64_t state_;
};

// int32 or int64, in memory of exactly their size.
struct IntegerArray {
  IntegerArray(const std::vector<int64_t>& values, bool wide_values) : wide(wide_values) {
    if (wide) {
      wides = values;
    } else {
      narrows.assign(values.begin(), values.end());
    }
  }

  const char* data() const {
    return wide ? reinterpret_cast<const char*>(wides.data()) : reinterpret_cast<const char*>(narrows.data());
  }
  char* data() { return const_cast<char*>(static_cast<const IntegerArray*>(this)->data()); }
  int64_t width() const { return wide ? 8 : 4; }
  int64_t operator[](int64_t i) const {
    return wide ? wides[static_cast<size_t>(i)] : narrows[static_cast<size_t>(i)];
  }

  bool wide;
  std::vector<int64_t> wides;
  std::vector<int32_t> narrows;
};

// One of a family's kernel tables for each instruction set of this processor.
template <class Kernels>
std::vector<const Kernels*> supported(const Kernels* baseline, const Kernels* avx2, const Kernels* avx512) {
  std::vector<const Kernels*> tables = {baseline};
  if (isa() >= Isa::avx2) tables.push_back(avx2);
  if (isa() >= Isa::avx512) tables.push_back(avx512);
  return tables;
}

}  // namespace rowwise

#ifdef ROWWISE_X86
#define SUPPORTED(kernels) ::rowwise::supported(&baseline::kernels, &avx2::kernels, &avx512::kernels)
#else
#define SUPPORTED(kernels) ::rowwise::supported(&baseline::kernels, &baseline::kernels, &baseline::kernels)
#endif
