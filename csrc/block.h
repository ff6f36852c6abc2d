// Sixteen floats at a time, on any instruction set, with the same result to the last bit on all of them: arithmetic is
// lane by lane, never fused, and a sum over lanes has one fixed order.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define ROWWISE_LANES 16
#elif defined(__AVX2__)
#define ROWWISE_LANES 8
#else
#define ROWWISE_LANES 4
#endif

#define ROWWISE_INLINE inline __attribute__((always_inline))

namespace rowwise {

// Storage types of a table; arithmetic is always in float.
struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

namespace ROWWISE_ISA {

typedef float Lanes __attribute__((vector_size(ROWWISE_LANES * 4)));
typedef uint32_t LanesBits __attribute__((vector_size(ROWWISE_LANES * 4)));
typedef uint16_t LanesShort __attribute__((vector_size(ROWWISE_LANES * 2)));

// The same at any address. What copies into a block as a whole is a copy in memory to GCC, of 16 bytes at a time where
// vectors have 32: the load that follows waits until all of these have left the processor's queue of stores, which takes
// longer than all else that a look-up does. So every access is one of a vector.
typedef float LanesAt __attribute__((vector_size(ROWWISE_LANES * 4), aligned(1), may_alias));
typedef uint16_t LanesShortAt __attribute__((vector_size(ROWWISE_LANES * 2), aligned(1), may_alias));

ROWWISE_INLINE Lanes load_lanes(const float* x) { return *reinterpret_cast<const LanesAt*>(x); }
ROWWISE_INLINE void store_lanes(float* y, const Lanes& x) { *reinterpret_cast<LanesAt*>(y) = x; }

constexpr int kBlock = 16;
constexpr int kParts = kBlock / ROWWISE_LANES;

ROWWISE_INLINE float to_float(float x) { return x; }

ROWWISE_INLINE float to_float(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

inline float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t fraction = x.bits & 0x3ffu;
  uint32_t bits;
  if (exponent == 0x1f) {
    bits = sign | 0x7f800000u | (fraction << 13) | (fraction ? 0x400000u : 0u);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  } else {  // zero or subnormal: fraction * 2^-24 is exact in float
    const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  }
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

ROWWISE_INLINE void from_float(float x, float* y) { *y = x; }

ROWWISE_INLINE void from_float(float x, Bfloat16* y) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  y->bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void from_float(float x, Half* y) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  uint16_t magnitude;
  if (bits > 0x7f800000u) {
    magnitude = static_cast<uint16_t>(0x7e00u | ((bits >> 13) & 0x3ffu));
  } else if (bits >= 0x477ff000u) {  // rounds to 2^16 or beyond
    magnitude = 0x7c00;
  } else if (bits >= 0x38800000u) {  // normal
    magnitude = static_cast<uint16_t>((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13);
  } else {  // subnormal: adding 0.5 leaves fraction * 2^24, rounded, in the low bits
    float value;
    std::memcpy(&value, &bits, 4);
    value += 0.5f;
    std::memcpy(&bits, &value, 4);
    magnitude = static_cast<uint16_t>(bits - 0x3f000000u);
  }
  y->bits = static_cast<uint16_t>(sign | magnitude);
}

struct Block {
  Lanes part[kParts];

  static ROWWISE_INLINE Block fill(float x) {
    Block b;
    for (int p = 0; p < kParts; ++p) b.part[p] = Lanes{} + x;
    return b;
  }

  static ROWWISE_INLINE Block load(const float* x) {
    Block b;
    for (int p = 0; p < kParts; ++p) b.part[p] = load_lanes(x + p * ROWWISE_LANES);
    return b;
  }

  static ROWWISE_INLINE Block load(const Bfloat16* x) {
    Block b;
    for (int p = 0; p < kParts; ++p) {
      const LanesShort narrow = *reinterpret_cast<const LanesShortAt*>(x + p * ROWWISE_LANES);
      b.part[p] = reinterpret_cast<Lanes>(__builtin_convertvector(narrow, LanesBits) << 16);
    }
    return b;
  }

  static ROWWISE_INLINE Block load(const Half* x) {
    Block b;
#if defined(__AVX512F__)
    b.part[0] = reinterpret_cast<Lanes>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))));
#elif defined(__F16C__)
    for (int p = 0; p < kParts; ++p) {
      b.part[p] = reinterpret_cast<Lanes>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x) + p)));
    }
#else
    float wide[kBlock];
    for (int i = 0; i < kBlock; ++i) wide[i] = to_float(x[i]);
    b = load(wide);
#endif
    return b;
  }

  // The first `n` < 16 of them, zeros behind; nothing beyond them is read.
  template <class T>
  static ROWWISE_INLINE Block load_head(const T* x, int n) {
    float head[kBlock] = {};
    for (int i = 0; i < n; ++i) head[i] = to_float(x[i]);
    return load(head);
  }

#if defined(__AVX512BW__) && defined(__AVX512VL__)
  static ROWWISE_INLINE Block load_head(const float* x, int n) {
    Block b;
    b.part[0] = reinterpret_cast<Lanes>(_mm512_maskz_loadu_ps(head_mask(n), x));
    return b;
  }

  static ROWWISE_INLINE Block load_head(const Half* x, int n) { return load_short_head(x, n); }
  static ROWWISE_INLINE Block load_head(const Bfloat16* x, int n) { return load_short_head(x, n); }

  template <class T>
  static ROWWISE_INLINE Block load_short_head(const T* x, int n) {
    T head[kBlock];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(head), _mm256_maskz_loadu_epi16(head_mask(n), x));
    return load(head);
  }

  static ROWWISE_INLINE __mmask16 head_mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
#elif defined(__AVX2__)
  // Whole vectors without a mask: AMD's processors take some ten times as long to store by one, and what is loaded by one
  // waits for the store before.
  static ROWWISE_INLINE Block load_head(const float* x, int n) {
    Block b;
    for (int p = 0; p < kParts; ++p) {
      const int at = p * ROWWISE_LANES, left = n - at;
      if (left >= ROWWISE_LANES)
        b.part[p] = load_lanes(x + at);
      else
        b.part[p] = left <= 0 ? Lanes{} : reinterpret_cast<Lanes>(_mm256_maskload_ps(x + at, head_mask(left)));
    }
    return b;
  }

  static ROWWISE_INLINE __m256i head_mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
#endif

  ROWWISE_INLINE void store(float* y) const {
    for (int p = 0; p < kParts; ++p) store_lanes(y + p * ROWWISE_LANES, part[p]);
  }

  ROWWISE_INLINE void store(Bfloat16* y) const {
    for (int p = 0; p < kParts; ++p) {
      const LanesBits bits = reinterpret_cast<LanesBits>(part[p]);
      const LanesBits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
      const LanesBits nan = reinterpret_cast<LanesBits>(part[p] != part[p]);
      const LanesShort narrow = __builtin_convertvector((nan & 0x7fc0u) | (~nan & rounded), LanesShort);
      *reinterpret_cast<LanesShortAt*>(y + p * ROWWISE_LANES) = narrow;
    }
  }

  ROWWISE_INLINE void store(Half* y) const {
#if defined(__AVX512F__)
    const __m512 wide = reinterpret_cast<__m512>(part[0]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    for (int p = 0; p < kParts; ++p) {
      const __m256 wide = reinterpret_cast<__m256>(part[p]);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y) + p, _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT));
    }
#else
    float wide[kBlock];
    store(wide);
    for (int i = 0; i < kBlock; ++i) from_float(wide[i], y + i);
#endif
  }

  template <class T>
  ROWWISE_INLINE void store_head(T* y, int n) const {
    float head[kBlock];
    store(head);
    for (int i = 0; i < n; ++i) from_float(head[i], y + i);
  }

#if defined(__AVX512BW__) && defined(__AVX512VL__)
  ROWWISE_INLINE void store_head(float* y, int n) const {
    _mm512_mask_storeu_ps(y, head_mask(n), reinterpret_cast<__m512>(part[0]));
  }

  ROWWISE_INLINE void store_head(Half* y, int n) const { store_short_head(y, n); }
  ROWWISE_INLINE void store_head(Bfloat16* y, int n) const { store_short_head(y, n); }

  template <class T>
  ROWWISE_INLINE void store_short_head(T* y, int n) const {
    T head[kBlock];
    store(head);
    _mm256_mask_storeu_epi16(y, head_mask(n), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(head)));
  }
#elif defined(__AVX2__)
  ROWWISE_INLINE void store_head(float* y, int n) const {
    for (int p = 0; p < kParts; ++p) {
      const int at = p * ROWWISE_LANES, left = n - at;
      if (left >= ROWWISE_LANES)
        store_lanes(y + at, part[p]);
      else if (left > 0)
        _mm256_maskstore_ps(y + at, head_mask(left), reinterpret_cast<__m256>(part[p]));
    }
  }
#endif

  // Lane i with lane i+8, then i+4, i+2, i+1: the one order in which a block is summed.
  ROWWISE_INLINE float sum() const {
    Lanes x[kParts];
    for (int p = 0; p < kParts; ++p) x[p] = part[p];
    for (int half = kParts / 2; half > 0; half /= 2)
      for (int p = 0; p < half; ++p) x[p] = x[p] + x[p + half];
    Lanes y = x[0];
#if ROWWISE_LANES == 16
    y = y + __builtin_shufflevector(y, y, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    y = y + __builtin_shufflevector(y, y, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    y = y + __builtin_shufflevector(y, y, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    y = y + __builtin_shufflevector(y, y, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif ROWWISE_LANES == 8
    y = y + __builtin_shufflevector(y, y, 4, 5, 6, 7, 0, 1, 2, 3);
    y = y + __builtin_shufflevector(y, y, 2, 3, 0, 1, 6, 7, 4, 5);
    y = y + __builtin_shufflevector(y, y, 1, 0, 3, 2, 5, 4, 7, 6);
#else
    y = y + __builtin_shufflevector(y, y, 2, 3, 0, 1);
    y = y + __builtin_shufflevector(y, y, 1, 0, 3, 2);
#endif
    return y[0];
  }
};

#define ROWWISE_BLOCK_OPERATOR(op)                                             \
  ROWWISE_INLINE Block operator op(const Block& a, const Block& b) {           \
    Block c;                                                                   \
    for (int p = 0; p < kParts; ++p) c.part[p] = a.part[p] op b.part[p];       \
    return c;                                                                  \
  }                                                                            \
  ROWWISE_INLINE Block operator op(const Block& a, float b) { return a op Block::fill(b); }
ROWWISE_BLOCK_OPERATOR(+)
ROWWISE_BLOCK_OPERATOR(-)
ROWWISE_BLOCK_OPERATOR(*)
ROWWISE_BLOCK_OPERATOR(/)
#undef ROWWISE_BLOCK_OPERATOR

ROWWISE_INLINE Block sqrt(const Block& a) {
  float x[kBlock];
  a.store(x);
  for (int i = 0; i < kBlock; ++i) x[i] = std::sqrt(x[i]);
  return Block::load(x);
}

// NaN stays NaN, as torch.clamp has it.
ROWWISE_INLINE Block clamp(const Block& a, float low, float high) {
  float x[kBlock];
  a.store(x);
  for (int i = 0; i < kBlock; ++i) {
    x[i] = x[i] < low ? low : x[i];
    x[i] = x[i] > high ? high : x[i];
  }
  return Block::load(x);
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
