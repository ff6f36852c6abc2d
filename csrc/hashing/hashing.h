// Stable 64-bit hashes of strings.
#pragma once

#include <cstdint>

namespace rowwise {

// Strings one after another in `bytes`; string i is [offsets[i], offsets[i + 1]). Offsets are int64 if `wide`, else int32.
struct Strings {
  const unsigned char* bytes;
  int64_t num_bytes;
  const void* offsets;
  bool wide;
  int64_t count;
};

// Writes the XXH64 of each string. Returns the first string that does not lie in the bytes, or -1; what lies behind it
// is not written.
int64_t hash_strings(const Strings& strings, uint64_t seed, uint64_t* hashes);

}  // namespace rowwise
