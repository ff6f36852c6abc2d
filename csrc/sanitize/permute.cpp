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
    test_regroup(random, random.below(20), random.below(70));
  }
  test_permute_rows(random, 40, 20000, 8);  // enough bytes for several threads
  test_regroup(random, 5000, 1000);
}

}  // namespace rowwise
