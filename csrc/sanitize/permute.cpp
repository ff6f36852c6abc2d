#include "permute/permute.h"

#include "check.h"

namespace rowwise {
namespace {

void test_permute_rows(Random& random, int64_t keys, int64_t most, int64_t row_bytes) {
  std::vector<int64_t> sizes(static_cast<size_t>(keys)), starts = {0};
  for (auto& size : sizes) {
    size = random.coin() ? random.below(most + 1) : 0;
    starts.push_back(starts.back() + size * row_bytes);
  }
  std::vector<char> from(static_cast<size_t>(starts.back()));
  for (auto& byte : from) byte = static_cast<char>(random.below(256));
  std::vector<int64_t> order(static_cast<size_t>(keys ? random.below(2 * keys) : 0));
  std::vector<char> expected;
  for (auto& key : order) {
    key = random.below(keys);
    const size_t k = static_cast<size_t>(key);
    expected.insert(expected.end(), from.begin() + starts[k], from.begin() + starts[k + 1]);
  }
  std::vector<char> to(expected.size());
  permute_rows({from.data(), to.data(), row_bytes}, sizes.data(), keys, order.data(), static_cast<int64_t>(order.size()));
  CHECK(to == expected);
}

void test_permute_lengths(Random& random, int64_t keys) {
  const bool wide = random.coin();
  std::vector<int64_t> lengths, strides, sizes, starts = {0};
  for (int64_t k = 0; k < keys; ++k) {
    strides.push_back(random.below(5));
    sizes.push_back(0);
    for (int64_t b = 0; b < strides.back(); ++b) lengths.push_back(random.below(4)), sizes.back() += lengths.back();
    starts.push_back(starts.back() + strides.back());
  }
  std::vector<int64_t> order, expected;
  for (int64_t i = random.below(2 * keys); i > 0; --i) {
    const int64_t key = random.below(keys);
    order.push_back(key);
    expected.insert(expected.end(), lengths.begin() + starts[static_cast<size_t>(key)],
                    lengths.begin() + starts[static_cast<size_t>(key) + 1]);
  }
  const IntegerArray from(lengths, wide);
  IntegerArray to(std::vector<int64_t>(expected.size(), -1), wide);
  const Column column = {static_cast<const char*>(from.data()), static_cast<char*>(to.data()), wide ? 8 : 4};
  const int64_t count = static_cast<int64_t>(order.size());
  CHECK(permute_lengths(column, strides.data(), sizes.data(), keys, order.data(), count) == -1);
  for (size_t i = 0; i < expected.size(); ++i) CHECK(to[static_cast<int64_t>(i)] == expected[i]);
  if (order.empty()) return;
  const int64_t key = order[0];
  ++sizes[static_cast<size_t>(key)];
  CHECK(permute_lengths(column, strides.data(), sizes.data(), keys, order.data(), count) == key);
}

void test_regroup(Random& random, int64_t rows, int64_t most_bytes) {
  std::vector<std::vector<char>> data(static_cast<size_t>(1 + random.below(4)));
  std::vector<Matrix> inputs;
  for (auto& matrix : data) {
    const int64_t row_bytes = random.below(most_bytes + 1);
    matrix.resize(static_cast<size_t>(rows * row_bytes));
    for (auto& byte : matrix) byte = static_cast<char>(1 + random.below(255));
    inputs.push_back({matrix.data(), row_bytes});
  }
  std::vector<Piece> pieces(static_cast<size_t>(random.below(6)));
  int64_t out_bytes = 0;
  for (auto& piece : pieces) {
    piece.input = random.below(static_cast<int64_t>(inputs.size()) + 1) - 1;
    const int64_t available = piece.input < 0 ? most_bytes : inputs[static_cast<size_t>(piece.input)].row_bytes;
    piece.start_bytes = random.below(available + 1);
    piece.bytes = random.below(available - piece.start_bytes + 1);
    out_bytes += piece.bytes;
  }
  std::vector<char> out(static_cast<size_t>(rows * out_bytes), 0);
  regroup(inputs.data(), pieces.data(), static_cast<int64_t>(pieces.size()), {out.data(), out_bytes}, rows);
  const char* at = out.data();
  for (int64_t r = 0; r < rows; ++r) {
    for (const Piece& piece : pieces) {
      for (int64_t i = 0; i < piece.bytes; ++i, ++at) {
        if (piece.input < 0) {
          CHECK(*at == 0);
        } else {
          const Matrix& input = inputs[static_cast<size_t>(piece.input)];
          CHECK(*at == input.data[r * input.row_bytes + piece.start_bytes + i]);
        }
      }
    }
  }
}

}  // namespace

void test_permute() {
  Random random(2);
  const int64_t widths[] = {1, 2, 4, 8, 12};
  for (int i = 0; i < 3000; ++i) {
    test_permute_rows(random, random.below(12), random.below(20), random.among(widths));
    test_permute_lengths(random, 1 + random.below(12));
    test_regroup(random, random.below(20), random.below(70));
  }
  test_permute_rows(random, 40, 20000, 8);  // enough bytes for several threads
  test_regroup(random, 5000, 1000);
}

}  // namespace rowwise
