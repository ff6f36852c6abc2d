#include "jagged/jagged.h"

#include <algorithm>
#include <cstring>

#include "check.h"

namespace rowwise {
namespace {

std::vector<int64_t> random_lengths(Random& random, int64_t count, int64_t most) {
  std::vector<int64_t> lengths(static_cast<size_t>(count));
  for (auto& length : lengths) length = random.coin() ? random.below(most + 1) : 0;
  return lengths;
}

std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets = {0};
  for (int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

std::vector<char> random_bytes(Random& random, int64_t count) {
  std::vector<char> bytes(static_cast<size_t>(count));
  for (auto& byte : bytes) byte = static_cast<char>(random.below(256));
  return bytes;
}

Integers view(const IntegerArray& array, int64_t count) { return {array.data(), array.wide, count}; }

void test_counts(Random& random, const JaggedKernels& kernels) {
  const bool wide = random.coin();
  const int64_t count = random.below(70);
  const std::vector<int64_t> lengths = random_lengths(random, count, 9);
  const std::vector<int64_t> offsets = offsets_of(lengths);
  const int64_t total = offsets.back();
  const IntegerArray given(lengths, wide);
  const Integers integers = view(given, count);

  CHECK(kernels.lengths_fit(integers, total));
  CHECK(!kernels.lengths_fit(integers, total + 1));
  IntegerArray written(std::vector<int64_t>(static_cast<size_t>(count) + 1, -1), wide);
  CHECK(kernels.offsets_of(integers, written.data()));
  for (int64_t i = 0; i <= count; ++i) CHECK(written[i] == offsets[static_cast<size_t>(i)]);
  CHECK(kernels.offsets_fit(view(written, count + 1), total));
  CHECK(!kernels.offsets_fit(view(written, count + 1), total + 1));

  if (count > 0) {
    std::vector<int64_t> broken = lengths;
    const size_t at = static_cast<size_t>(random.below(count));
    const int64_t by = broken[at] + 1 + random.below(3);
    broken[at] -= by;
    const IntegerArray negative(broken, wide);
    CHECK(!kernels.lengths_fit(view(negative, count), total - by));
    broken = offsets;
    broken[at + 1] = broken[at] - 1;
    const IntegerArray falling(broken, wide);
    CHECK(!kernels.offsets_fit(view(falling, count + 1), broken.back()));
  }

  std::vector<int64_t> sizes;
  for (int64_t left = count; left > 0; left -= sizes.back()) sizes.push_back(random.below(left + 1));
  sizes.push_back(0);
  std::vector<int64_t> sums(sizes.size(), -1);
  CHECK(kernels.sum_groups(integers, sizes.data(), static_cast<int64_t>(sizes.size()), sums.data()));
  int64_t at = 0;
  for (size_t g = 0; g < sizes.size(); at += sizes[g++]) {
    CHECK(sums[g] == offsets[static_cast<size_t>(at + sizes[g])] - offsets[static_cast<size_t>(at)]);
  }

  const int64_t size = random.below(20);
  const int64_t groups = size ? count / size : random.below(5);
  std::vector<int64_t> equal(static_cast<size_t>(groups), -1);
  const Integers head = view(given, groups * size);
  CHECK(kernels.sum_equal_groups(head, size, groups, equal.data()));
  for (int64_t g = 0; g < groups; ++g) {
    CHECK(equal[static_cast<size_t>(g)] ==
          offsets[static_cast<size_t>((g + 1) * size)] - offsets[static_cast<size_t>(g * size)]);
  }
}

// Sums that wrap: modulo 2**64 these lengths fit.
void test_wrapping(const JaggedKernels& kernels) {
  const int64_t quarter = int64_t{1} << 62;
  const std::vector<int64_t> lengths = {quarter, quarter, quarter, quarter, 3};
  const IntegerArray given(lengths, true);
  const Integers all = view(given, 5), two = view(given, 2);
  std::vector<int64_t> offsets(6), sums(2);
  const std::vector<int64_t> sizes = {4, 1};
  CHECK(!kernels.lengths_fit(all, 3));
  CHECK(!kernels.lengths_fit(two, -quarter - quarter));
  CHECK(kernels.lengths_fit(view(given, 1), quarter));
  CHECK(!kernels.offsets_of(all, offsets.data()));
  CHECK(!kernels.sum_groups(all, sizes.data(), 2, sums.data()));
  CHECK(!kernels.sum_equal_groups(view(given, 4), 2, 2, sums.data()));
  const IntegerArray large({quarter, 0, 0, 0, quarter - 1}, true);  // look as if they might wrap, but do not
  CHECK(kernels.lengths_fit(view(large, 5), 2 * (quarter - 1) + 1));
  const IntegerArray narrow({int64_t{1} << 30, int64_t{1} << 30}, false);
  CHECK(kernels.lengths_fit(view(narrow, 2), int64_t{1} << 31));
  CHECK(!kernels.offsets_of(view(narrow, 2), offsets.data()));
  const IntegerArray bags({0, 1}, true);
  CHECK(take_lengths(all, view(bags, 2), offsets.data()) == -1);
}

void test_rows(Random& random, int64_t count, int64_t most, int64_t row_bytes) {
  const bool wide = random.coin();
  const std::vector<int64_t> lengths = random_lengths(random, count, most);
  const std::vector<int64_t> offsets = offsets_of(lengths);
  const IntegerArray given_lengths(lengths, wide), given_offsets(offsets, wide);
  const std::vector<char> rows = random_bytes(random, offsets.back() * row_bytes);

  std::vector<int64_t> bags(static_cast<size_t>(count ? random.below(2 * count) : 0));
  for (auto& bag : bags) bag = random.below(count);
  const IntegerArray given_bags(bags, random.coin());
  const Integers chosen = view(given_bags, static_cast<int64_t>(bags.size()));
  IntegerArray taken_lengths(std::vector<int64_t>(bags.size(), -1), wide);
  const int64_t taken = take_lengths(view(given_lengths, count), chosen, taken_lengths.data());
  std::vector<char> expected;
  for (size_t i = 0; i < bags.size(); ++i) {
    const size_t bag = static_cast<size_t>(bags[i]);
    CHECK(taken_lengths[static_cast<int64_t>(i)] == lengths[bag]);
    expected.insert(expected.end(), rows.begin() + offsets[bag] * row_bytes, rows.begin() + offsets[bag + 1] * row_bytes);
  }
  CHECK(taken * row_bytes == static_cast<int64_t>(expected.size()));
  std::vector<char> moved(expected.size());
  take_rows(view(given_lengths, count), chosen, rows.data(), row_bytes, moved.data());
  CHECK(moved == expected);

  const int64_t outside[] = {-1, count, INT32_MAX, INT32_MIN};
  const IntegerArray wrong({random.among(outside)}, wide);
  IntegerArray room({0}, wide);
  CHECK(take_lengths(view(given_lengths, count), view(wrong, 1), room.data()) == -1);

  const int64_t width = random.below(most + 2);
  std::vector<char> padded(static_cast<size_t>(count * width * row_bytes), 7), unpadded(rows.size(), 7);
  to_padded(view(given_offsets, count + 1), rows.data(), row_bytes, width, padded.data());
  from_padded(view(given_offsets, count + 1), padded.data(), row_bytes, width, unpadded.data());
  for (int64_t b = 0; b < count; ++b) {
    const int64_t first = offsets[static_cast<size_t>(b)], length = lengths[static_cast<size_t>(b)];
    for (int64_t i = 0; i < std::max(length, width) * row_bytes; ++i) {
      const bool in_bag = i < length * row_bytes, in_dense = i < width * row_bytes;
      const char value = in_bag ? rows[static_cast<size_t>(first * row_bytes + i)] : 7;
      if (in_dense) CHECK(padded[static_cast<size_t>(b * width * row_bytes + i)] == value);
      if (in_bag) CHECK(unpadded[static_cast<size_t>(first * row_bytes + i)] == (in_dense ? value : 0));
    }
  }
}

void test_samples(Random& random, int64_t keys, int64_t stride, int64_t most, int64_t row_bytes) {
  const bool wide = random.coin();
  std::vector<int64_t> lengths = random_lengths(random, keys * stride, most);
  if (keys > 0 && random.coin()) std::fill(lengths.begin(), lengths.begin() + stride, 1);
  const std::vector<int64_t> offsets = offsets_of(lengths);
  const std::vector<char> rows = random_bytes(random, offsets.back() * row_bytes);
  std::vector<int64_t> samples(static_cast<size_t>(stride ? random.below(2 * stride) : 0));
  for (auto& sample : samples) sample = random.below(stride);
  std::vector<int64_t> sizes;
  for (int64_t left = static_cast<int64_t>(samples.size()); left > 0; left -= sizes.back()) {
    sizes.push_back(random.below(left + 1));
  }

  std::vector<int64_t> bags;
  auto part = samples.begin();
  for (int64_t size : sizes) {
    for (int64_t k = 0; k < keys; ++k) {
      for (int64_t i = 0; i < size; ++i) bags.push_back(k * stride + part[i]);
    }
    part += size;
  }
  std::vector<char> expected;
  for (int64_t bag : bags) {
    const size_t b = static_cast<size_t>(bag);
    expected.insert(expected.end(), rows.begin() + offsets[b] * row_bytes, rows.begin() + offsets[b + 1] * row_bytes);
  }

  const IntegerArray given(lengths, wide), chosen(samples, random.coin());
  const SampleSelection selection = {view(given, keys * stride), keys, stride,
                                     view(chosen, static_cast<int64_t>(samples.size())), sizes.data(),
                                     static_cast<int64_t>(sizes.size())};
  IntegerArray taken(std::vector<int64_t>(bags.size(), -1), wide);
  const int64_t total = take_sample_lengths(selection, offsets.back(), taken.data());
  CHECK(total * row_bytes == static_cast<int64_t>(expected.size()));
  for (size_t i = 0; i < bags.size(); ++i) {
    CHECK(taken[static_cast<int64_t>(i)] == lengths[static_cast<size_t>(bags[i])]);
  }
  std::vector<char> moved(expected.size());
  take_sample_rows(selection, taken.data(), rows.data(), row_bytes, moved.data());
  CHECK(moved == expected);

  CHECK(take_sample_lengths(selection, offsets.back() + 1, taken.data()) == -2);
  const int64_t outside[] = {-1, stride, INT32_MAX, INT32_MIN};
  const IntegerArray wrong({random.among(outside)}, wide);
  const int64_t one = 1;
  CHECK(take_sample_lengths({view(given, keys * stride), keys, stride, view(wrong, 1), &one, 1}, offsets.back(),
                            taken.data()) == -1);
}

}  // namespace

void test_jagged() {
  Random random(1);
  for (const JaggedKernels* kernels : SUPPORTED(kJagged)) {
    for (int i = 0; i < 2000; ++i) test_counts(random, *kernels);
    test_wrapping(*kernels);
  }
  const int64_t widths[] = {1, 3, 4, 8, 20};
  for (int i = 0; i < 2000; ++i) test_rows(random, random.below(30), random.below(9), random.among(widths));
  test_rows(random, 3000, 40, 100);  // enough bytes for several threads
  for (int i = 0; i < 2000; ++i) {
    test_samples(random, random.below(5), random.below(12), random.below(4), random.among(widths));
  }
  test_samples(random, 20, 9000, 2, 8);
}

}  // namespace rowwise
