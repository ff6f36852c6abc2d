// XXH64 after its public description, "xxHash fast digest algorithm" (xxh64.md of the xxHash project). All of it is
// chains of 64-bit multiplications, for which no instruction set has more than the baseline: there is one copy.
#include "hashing/hashing.h"

#include <cstring>

namespace rowwise {
namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87u;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Fu;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9u;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63u;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5u;

inline uint64_t rotate(uint64_t x, int bits) { return (x << bits) | (x >> (64 - bits)); }

// Little-endian, as the algorithm demands, on every machine.
inline uint64_t read64(const unsigned char* p) {
  uint64_t x;
  std::memcpy(&x, p, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  x = __builtin_bswap64(x);
#endif
  return x;
}

inline uint64_t read32(const unsigned char* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  x = __builtin_bswap32(x);
#endif
  return x;
}

inline uint64_t round(uint64_t lane, uint64_t input) { return rotate(lane + input * kPrime2, 31) * kPrime1; }

inline uint64_t merge(uint64_t hash, uint64_t lane) { return (hash ^ round(0, lane)) * kPrime1 + kPrime4; }

// Whole stripes of 32 bytes, in four independent lanes.
inline uint64_t hash_stripes(const unsigned char*& p, const unsigned char* end, uint64_t seed) {
  uint64_t a = seed + kPrime1 + kPrime2, b = seed + kPrime2, c = seed, d = seed - kPrime1;
  for (; end - p >= 32; p += 32) {
    a = round(a, read64(p));
    b = round(b, read64(p + 8));
    c = round(c, read64(p + 16));
    d = round(d, read64(p + 24));
  }
  const uint64_t hash = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
  return merge(merge(merge(merge(hash, a), b), c), d);
}

uint64_t hash_bytes(const unsigned char* p, int64_t count, uint64_t seed) {
  const unsigned char* end = p + count;
  uint64_t hash = (count >= 32 ? hash_stripes(p, end, seed) : seed + kPrime5) + static_cast<uint64_t>(count);
  for (; end - p >= 8; p += 8) hash = rotate(hash ^ round(0, read64(p)), 27) * kPrime1 + kPrime4;
  if (end - p >= 4) {
    hash = rotate(hash ^ (read32(p) * kPrime1), 23) * kPrime2 + kPrime3;
    p += 4;
  }
  for (; p < end; ++p) hash = rotate(hash ^ (*p * kPrime5), 11) * kPrime1;
  hash = (hash ^ (hash >> 33)) * kPrime2;
  hash = (hash ^ (hash >> 29)) * kPrime3;
  return hash ^ (hash >> 32);
}

template <class Offset>
int64_t hash_all(const Strings& strings, uint64_t seed, uint64_t* hashes) {
  const Offset* offsets = static_cast<const Offset*>(strings.offsets);
  for (int64_t i = 0; i < strings.count; ++i) {
    const int64_t start = offsets[i], end = offsets[i + 1];
    if (start < 0 || end < start || end > strings.num_bytes) return i;
    hashes[i] = hash_bytes(strings.bytes + start, end - start, seed);
  }
  return -1;
}

}  // namespace

int64_t hash_strings(const Strings& strings, uint64_t seed, uint64_t* hashes) {
  return strings.wide ? hash_all<int64_t>(strings, seed, hashes) : hash_all<int32_t>(strings, seed, hashes);
}

void hash_ids(const int64_t* ids, int64_t count, int64_t span, int64_t* hashes) {
  for (int64_t i = 0; i < count; ++i) hashes[i] = hash_into(ids[i], span);
}

}  // namespace rowwise
