// How rows of codes are read: sixteen codes become sixteen bytes, and these a block of floats.
#pragma once

#include "embedding/forward.h"
#include "quant/quant.h"

namespace rowwise {
namespace ROWWISE_ISA {

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef int32_t LanesInt __attribute__((vector_size(ROWWISE_LANES * 4)));

// Sixteen codes of `kBits` each, one a byte; the bytes that hold them are the first of `packed`.
template <int kBits>
ROWWISE_INLINE Bytes unpack(Bytes packed) {
  if constexpr (kBits == 4) {
    return __builtin_shufflevector(packed & 15, packed >> 4, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  } else if constexpr (kBits == 2) {
    const Bytes low = __builtin_shufflevector(packed & 3, (packed >> 2) & 3, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const Bytes high = __builtin_shufflevector((packed >> 4) & 3, packed >> 6, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return __builtin_shufflevector(low, high, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
  } else {
    return packed;
  }
}

// The bytes of sixteen codes, the rest 0. By hand: of a copy into a vector of zeros compilers make a store and a load that
// waits for it.
template <int kBits>
ROWWISE_INLINE Bytes load_codes(const uint8_t* codes) {
  Bytes packed = {};
#if defined(__AVX2__)
  __m128i read;
  if constexpr (kBits == 4) {
    read = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  } else if constexpr (kBits == 2) {
    int32_t four;
    std::memcpy(&four, codes, sizeof four);
    read = _mm_cvtsi32_si128(four);
  } else {
    read = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  }
  std::memcpy(&packed, &read, sizeof packed);
#else
  std::memcpy(&packed, codes, 2 * kBits);
#endif
  return packed;
}

// By hand: of a conversion of vectors compilers make a number at a time.
ROWWISE_INLINE Block to_block(Bytes codes) {
  Block block;
#if defined(__AVX512F__)
  __m128i bytes;
  std::memcpy(&bytes, &codes, sizeof bytes);
  block.part[0] = reinterpret_cast<Lanes>(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
#elif defined(__AVX2__)
  __m128i bytes;
  std::memcpy(&bytes, &codes, sizeof bytes);
  block.part[0] = reinterpret_cast<Lanes>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
  block.part[1] = reinterpret_cast<Lanes>(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))));
#else
  const Bytes zero = {};
  const Bytes halves[2] = {
      __builtin_shufflevector(codes, zero, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
      __builtin_shufflevector(codes, zero, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)};
  for (int h = 0; h < 2; ++h) {
    const Bytes quarters[2] = {
        __builtin_shufflevector(halves[h], zero, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23),
        __builtin_shufflevector(halves[h], zero, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31)};
    for (int q = 0; q < 2; ++q) {
      block.part[2 * h + q] = __builtin_convertvector(reinterpret_cast<LanesInt>(quarters[q]), Lanes);
    }
  }
#endif
  return block;
}

// Scale and bias of a row, each in all lanes.
struct Head {
  Block scale, bias;
};
ROWWISE_INLINE Head read_head(const uint8_t* row) {
#if defined(__AVX512F__)
  int32_t both;
  std::memcpy(&both, row, sizeof both);
  const __m128 wide = _mm_cvtph_ps(_mm_cvtsi32_si128(both));
  Head head;
  head.scale.part[0] = reinterpret_cast<Lanes>(_mm512_broadcastss_ps(wide));
  head.bias.part[0] = reinterpret_cast<Lanes>(_mm512_broadcastss_ps(_mm_movehdup_ps(wide)));
  return head;
#elif defined(__F16C__)
  int32_t both;
  std::memcpy(&both, row, sizeof both);
  const __m128 wide = _mm_cvtph_ps(_mm_cvtsi32_si128(both));
  return {Block::fill(wide[0]), Block::fill(wide[1])};
#else
  Half both[2];
  std::memcpy(both, row, sizeof both);
  return {Block::fill(to_float(both[0])), Block::fill(to_float(both[1]))};
#endif
}

// See PlainRows, of which this has the methods.
template <int kBits>
class CodedRows {
 public:
  explicit CodedRows(int64_t column) : codes_(kHead + column * kBits / 8) {}

  static constexpr int64_t bytes(int blocks) { return kHead + blocks * kStep; }

  // Rows begin anywhere in a line: what is left beyond the last whole one may reach into another.
  template <int kBlocks>
  ROWWISE_INLINE void fetch_row(int64_t at) const {
    const int64_t from = codes_ == kHead ? 0 : codes_;
    constexpr int64_t size = bytes(kBlocks);
    fetch(at + from, size);
    if constexpr ((size - 1) % 64 != 0) fetch(at + from + size - 1, 1);
  }

  struct Row {
    const uint8_t* codes;
    Head head;

    ROWWISE_INLINE Block load(int b) const {
      return value(load_codes<kBits>(codes + b * kStep));
    }
    ROWWISE_INLINE Block load_head(int b, int n) const {
      const uint8_t* from = codes + b * kStep;
      const int count = (n * kBits + 7) / 8;
      Bytes packed = {};
#if defined(__AVX512BW__) && defined(__AVX512VL__)
      const __m128i read = _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1), from);
      std::memcpy(&packed, &read, sizeof packed);
#else
      for (int i = 0; i < count; ++i) packed[i] = from[i];
#endif
      return value(packed);
    }
    ROWWISE_INLINE Block value(Bytes packed) const { return to_block(unpack<kBits>(packed)) * head.scale + head.bias; }
  };
  ROWWISE_INLINE Row row(int64_t at) const {
    const uint8_t* begin = reinterpret_cast<const uint8_t*>(static_cast<uintptr_t>(at));
    return {begin + codes_, read_head(begin)};
  }

 private:
  static constexpr int64_t kStep = kBlock * kBits / 8;  // bytes of sixteen codes
  int64_t codes_;
};

// Calls body(rows) with an object that says which class reads rows of the format: what follows is compiled once a format.
template <class Rows>
struct Reader {
  using type = Rows;
};
template <class Body>
ROWWISE_INLINE void with_reader(Format format, const Body& body) {
  switch (format) {
    case Format::f32: return body(Reader<PlainRows<float>>());
    case Format::f16: return body(Reader<PlainRows<Half>>());
    case Format::bf16: return body(Reader<PlainRows<Bfloat16>>());
    case Format::int8: return body(Reader<CodedRows<8>>());
    case Format::int4: return body(Reader<CodedRows<4>>());
    case Format::int2: return body(Reader<CodedRows<2>>());
  }
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
