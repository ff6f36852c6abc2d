// Jagged tensors: bag b holds `lengths[b]` rows, from row `offsets[b]` on. Lengths and offsets are int32 or int64
// ("wide"); rows are runs of bytes.
#pragma once

#include <cstdint>

namespace rowwise {

struct Integers {
  const void* data;
  bool wide;
  int64_t count;
};

struct JaggedKernels {
  // Whether no length is negative and they sum to `total`.
  bool (*lengths_fit)(const Integers& lengths, int64_t total);
  // Whether offsets start at 0, never fall and end at `total`.
  bool (*offsets_fit)(const Integers& offsets, int64_t total);
  // Writes lengths.count + 1 offsets of the same width; returns whether none has wrapped.
  bool (*offsets_of)(const Integers& lengths, void* offsets);
  // Sums of consecutive groups of lengths, `sizes[g]` of them each, which are not negative and together no more than
  // there are; returns whether no length is negative and no sum is 2**63 or more.
  bool (*sum_groups)(const Integers& lengths, const int64_t* sizes, int64_t groups, int64_t* sums);
  // Sums of groups of one size.
  bool (*sum_equal_groups)(const Integers& lengths, int64_t size, int64_t groups, int64_t* sums);
};

const JaggedKernels& jagged_kernels();

namespace baseline {
extern const JaggedKernels kJagged;
}
namespace avx2 {
extern const JaggedKernels kJagged;
}
namespace avx512 {
extern const JaggedKernels kJagged;
}

// Whole bags by position, in two steps, because the caller allocates in between.
// First the lengths of the bags taken, of the same width; returns their sum, or -1 if a bag is out of
// range, a length negative, or the sum 2**63 or more.
int64_t take_lengths(const Integers& lengths, const Integers& bags, void* taken);
// Then their rows.
void take_rows(const Integers& lengths, const Integers& bags, const char* rows, int64_t row_bytes, char* taken);

// The bags of some samples, of every key, cut to batches: bag k * B + b is that of key k and sample b, and so it is in
// each batch. Two steps again.
struct SampleSelection {
  Integers lengths;  // keys * stride
  int64_t keys, stride;
  Integers samples;
  const int64_t* sizes;  // of the batches; together samples.count
  int64_t batches;
};

// Returns the sum of the lengths taken; -1 if a sample is out of range, -2 if lengths do not fit `num_rows` rows, or
// what is taken may not be counted in int64.
int64_t take_sample_lengths(const SampleSelection& selection, int64_t num_rows, void* taken);
// `lengths_taken` are those of the first step.
void take_sample_rows(const SampleSelection& selection, const void* lengths_taken, const char* rows, int64_t row_bytes,
                      char* taken);

// Bag b from and to row b of a dense tensor of `width` rows a bag. What a bag does not fill is left as it is; what the
// dense row does not hold of a bag becomes zero.
void to_padded(const Integers& offsets, const char* rows, int64_t row_bytes, int64_t width, char* padded);
void from_padded(const Integers& offsets, const char* padded, int64_t row_bytes, int64_t width, char* rows);

}  // namespace rowwise
