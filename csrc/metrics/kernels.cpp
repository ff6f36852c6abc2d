// Compiled once per instruction set, see csrc/README.md. Samples are read once for all sums, eight at a time, and never
// written. Sums over lanes have one order, so results are the same on every instruction set and number of threads.
#include "metrics/metrics.h"

#include "block.h"
#include "pieces.h"
#include "scratch.h"

namespace rowwise {
namespace ROWWISE_ISA {
namespace {

constexpr int64_t kLanes = 8;
typedef float Narrow __attribute__((vector_size(kLanes * 4)));
typedef double Wide __attribute__((vector_size(kLanes * 8)));
typedef int64_t Bits __attribute__((vector_size(kLanes * 8)));
typedef uint64_t UnsignedBits __attribute__((vector_size(kLanes * 8)));

template <class To, class From>
ROWWISE_INLINE To same_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from, "one size");
  std::memcpy(&to, &from, sizeof to);
  return to;
}

ROWWISE_INLINE Wide either(Bits first, Wide a, Wide b) {
  return same_bits<Wide>((first & same_bits<Bits>(a)) | (~first & same_bits<Bits>(b)));
}

ROWWISE_INLINE Wide widened(const float* from) {
  Narrow x;
  std::memcpy(&x, from, sizeof x);
  return __builtin_convertvector(x, Wide);
}

// Fewer than eight numbers, and zeros behind.
ROWWISE_INLINE Wide widened_head(const float* from, int64_t count) {
  float head[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) head[i] = from[i];
  return widened(head);
}

ROWWISE_INLINE double total(Wide x) {
  double sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

// Calls add(prediction, label, weight) for all samples of a task; those that fill up the last eight weigh nothing.
template <class Add>
ROWWISE_INLINE void for_samples(const TaskSamples& s, int64_t task, const Add& add) {
  const float* p = s.predictions + task * s.samples;
  const float* y = s.labels + task * s.samples;
  const float* w = s.weights == nullptr ? nullptr : s.weights + task * s.samples;
  const Wide ones = Wide{} + 1.0;
  int64_t i = 0;
  for (; i + kLanes <= s.samples; i += kLanes) add(widened(p + i), widened(y + i), w == nullptr ? ones : widened(w + i));
  if (i == s.samples) return;
  const int64_t rest = s.samples - i;
  const float one[kLanes] = {1, 1, 1, 1, 1, 1, 1, 1};
  add(widened_head(p + i, rest), widened_head(y + i, rest), widened_head(w == nullptr ? one : w + i, rest));
}

int threads_for(const TaskSamples& s, int threads) {
  return s.tasks * s.samples * static_cast<int64_t>(3 * sizeof(float)) < kSmallWork * 8 ? 1 : threads;
}

void weighted_sums(const TaskSamples& s, double* sums, int threads) {
  in_pieces(threads_for(s, threads), s.tasks, [&](int64_t task, int) {
    Wide weight = {}, labels = {}, predictions = {}, squares = {}, distances = {};
    for_samples(s, task, [&](Wide p, Wide y, Wide w) {
      const Wide error = y - p;
      weight += w;
      labels += w * y;
      predictions += w * p;
      squares += w * (error * error);
      distances += w * same_bits<Wide>(same_bits<UnsignedBits>(error) << 1 >> 1);
    });
    const double found[kWeightedSums] = {total(weight), total(labels), total(predictions), total(squares), total(distances)};
    for (int64_t i = 0; i < kWeightedSums; ++i) sums[i * s.tasks + task] = found[i];
  });
}

// The logarithm to base 2 of positive normal numbers, to some units in the last place; NaN of NaN. x = 2^k m with m
// between the roots of 1/2 and 2, and log m = 2 artanh(s) for s = (m - 1) / (m + 1), by its Taylor series.
ROWWISE_INLINE Wide log2_of(Wide x) {
  constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcd, kBias = uint64_t{1023} << 52;
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52: integers lie in the lowest bits behind it
  const UnsignedBits bits = same_bits<UnsignedBits>(x);
  const UnsignedBits biased = (bits - kRootHalf + kBias) >> 52;  // k + 1023
  const Wide m = same_bits<Wide>(bits - ((biased - 1023) << 52));
  const Wide k = same_bits<Wide>(biased + same_bits<UnsignedBits>(Wide{} + kShift)) - (kShift + 1023.0);
  const Wide s = (m - 1.0) / (m + 1.0), z = s * s;
  Wide series = Wide{} + 1.0 / 23;
  for (int n = 21; n >= 1; n -= 2) series = series * z + 1.0 / n;
  return k + s * series * 2.8853900817779268 + (x - x);  // 2 / log 2
}

void cross_entropy_sums(const TaskSamples& s, double eta, double* sums, int threads) {
  in_pieces(threads_for(s, threads), s.tasks, [&](int64_t task, int) {
    const Wide least = Wide{} + eta, most = Wide{} + (1.0 - eta);
    Wide sum = {};
    for_samples(s, task, [&](Wide p, Wide y, Wide w) {
      p = either(p < least, least, p);
      p = either(p > most, most, p);
      const Bits positive = y == 1.0, plain = positive | (y == 0.0);
      int64_t is_plain = -1;
      for (int64_t i = 0; i < kLanes; ++i) is_plain &= plain[i];
      // One logarithm is enough where each sample is of one class: the other has no part.
      sum += w * (is_plain ? log2_of(either(positive, p, 1.0 - p)) : y * log2_of(p) + (1.0 - y) * log2_of(1.0 - p));
    });
    sums[task] = -total(sum);
  });
}

void threshold_sums(const TaskSamples& s, float threshold, double* sums, int threads) {
  in_pieces(threads_for(s, threads), s.tasks, [&](int64_t task, int) {
    const Wide bound = Wide{} + static_cast<double>(threshold), none = {}, one = Wide{} + 1.0;
    Wide hits = {}, alarms = {}, missed = {}, right = {}, unknown = {};
    for_samples(s, task, [&](Wide p, Wide y, Wide w) {
      const Bits chosen = p >= bound;
      const Wide positive = w * y, negative = w - positive;
      hits += either(chosen, positive, none);
      alarms += either(chosen, negative, none);
      missed += either(chosen, none, positive);
      right += either(either(chosen, one, none) == y, w, none);
      unknown += (p + y) * 0.0;
    });
    const double nan = total(unknown);
    const double found[kThresholdSums] = {total(hits), total(alarms), total(missed), total(right)};
    for (int64_t i = 0; i < kThresholdSums; ++i) sums[i * s.tasks + task] = found[i] + nan;
  });
}

// A sample to be sorted: `key` sorts as its score does.
struct Sample {
  uint32_t key;
  float label, weight;
  ROWWISE_INLINE double total() const { return static_cast<double>(weight); }
  ROWWISE_INLINE double positive() const { return static_cast<double>(weight) * static_cast<double>(label); }
};

// The same of one class, of a weight that is not negative: two thirds of the memory, and so of the time.
struct PlainSample {
  uint32_t key;
  float signed_weight;  // negative if positive
  ROWWISE_INLINE double total() const { return std::fabs(static_cast<double>(signed_weight)); }
  ROWWISE_INLINE double positive() const { return 0.5 * (total() - static_cast<double>(signed_weight)); }
};

ROWWISE_INLINE uint32_t key_of(float score) {
  score += 0.0f;  // makes -0.0 a 0.0
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// Sorts by key, with `spare` as second buffer; returns the one that holds the result. Least significant digit first; a
// digit that all have in common takes no pass.
template <class S>
S* sort_by_key(S* samples, S* spare, int64_t count) {
  constexpr int kDigit = 11, kPasses = 3, kValues = 1 << kDigit;
  static_assert(kDigit * kPasses >= 32, "all bits");
  int64_t counts[kPasses][kValues] = {};
  for (int64_t i = 0; i < count; ++i) {
    for (int pass = 0; pass < kPasses; ++pass) ++counts[pass][samples[i].key >> (pass * kDigit) & (kValues - 1)];
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    const int shift = pass * kDigit;
    int64_t* starts = counts[pass];
    if (starts[samples[0].key >> shift & (kValues - 1)] == count) continue;
    int64_t start = 0;
    for (int value = 0; value < kValues; ++value) {
      const int64_t next = start + starts[value];
      starts[value] = start;
      start = next;
    }
    for (int64_t i = 0; i < count; ++i) spare[starts[samples[i].key >> shift & (kValues - 1)]++] = samples[i];
    S* sorted = spare;
    spare = samples;
    samples = sorted;
  }
  return samples;
}

template <class S>
double area_of_sorted(const S* samples, int64_t count) {
  double area = 0, positives = 0, negatives = 0;
  for (int64_t i = 0; i < count;) {
    const uint32_t key = samples[i].key;
    double up = samples[i].positive(), down = samples[i].total() - up;  // of one score
    for (++i; i < count && samples[i].key == key; ++i) {
      const double positive = samples[i].positive();
      up += positive;
      down += samples[i].total() - positive;
    }
    area += up * (negatives + 0.5 * down);
    positives += up;
    negatives += down;
  }
  const double pairs = positives * negatives;
  return pairs == 0 ? 0.5 : area / pairs;
}

double roc_area(const TaskSamples& s, int64_t task, char* memory) {
  const int64_t count = s.samples;
  if (count == 0) return 0.5;
  const float* scores = s.predictions + task * count;
  const float* labels = s.labels + task * count;
  const float* weights = s.weights == nullptr ? nullptr : s.weights + task * count;
  int is_known = 1, is_plain = 1;
  for (int64_t i = 0; i < count; ++i) {
    is_known &= scores[i] == scores[i];
    is_plain &= (labels[i] == 0) | (labels[i] == 1);
  }
  if (!is_known) return __builtin_nan("");
  for (int64_t i = 0; weights != nullptr && i < count; ++i) is_plain &= weights[i] >= 0;
  if (is_plain) {
    auto* samples = reinterpret_cast<PlainSample*>(memory);
    for (int64_t i = 0; i < count; ++i) {
      const float weight = weights == nullptr ? 1.0f : weights[i];
      samples[i] = {key_of(scores[i]), std::copysign(weight, 0.5f - labels[i])};
    }
    return area_of_sorted(sort_by_key(samples, samples + count, count), count);
  }
  auto* samples = reinterpret_cast<Sample*>(memory);
  for (int64_t i = 0; i < count; ++i) samples[i] = {key_of(scores[i]), labels[i], weights == nullptr ? 1.0f : weights[i]};
  return area_of_sorted(sort_by_key(samples, samples + count, count), count);
}

void roc_areas(const TaskSamples& s, double* areas, int threads) {
  const int64_t bytes = s.samples * 2 * static_cast<int64_t>(sizeof(Sample));
  in_pieces(threads_for(s, threads), s.tasks, [&](int64_t task, int) {
    Scratch scratch(static_cast<size_t>(bytes));
    areas[task] = roc_area(s, task, scratch.data());
  });
}

}  // namespace

extern const MetricKernels kMetrics = {weighted_sums, cross_entropy_sums, threshold_sums, roc_areas};

}  // namespace ROWWISE_ISA
}  // namespace rowwise
