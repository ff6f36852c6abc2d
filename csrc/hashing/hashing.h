// Stable 64-bit hashes of strings and of ids.
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

// The same hash everywhere: on every platform, in every process, in the plain-PyTorch reference.
inline uint64_t hash_id(int64_t id) {
  uint64_t x = static_cast<uint64_t>(id);
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  x ^= x >> 33;
  return x;
}

// An id's number in [0, span), evenly; span is at least 1.
inline int64_t hash_into(int64_t id, int64_t span) {
  return static_cast<int64_t>((hash_id(id) >> 1) % static_cast<uint64_t>(span));
}

void hash_ids(const int64_t* ids, int64_t count, int64_t span, int64_t* hashes);

}  // namespace rowwise
