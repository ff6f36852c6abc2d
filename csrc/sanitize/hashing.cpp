#include "hashing/hashing.h"

#include "check.h"

namespace rowwise {
namespace {

std::vector<uint64_t> hash(const std::vector<unsigned char>& bytes, const IntegerArray& offsets, int64_t count) {
  std::vector<uint64_t> hashes(static_cast<size_t>(count));
  const Strings strings = {bytes.data(), static_cast<int64_t>(bytes.size()), offsets.data(), offsets.wide, count};
  CHECK(hash_strings(strings, 0, hashes.data()) == -1);
  return hashes;
}

// Strings hash the same one by one, at whatever address, as together.
void test_together(Random& random, int64_t count, int64_t longest, bool wide) {
  std::vector<int64_t> offsets = {random.below(4)};
  for (int64_t i = 0; i < count; ++i) offsets.push_back(offsets.back() + random.below(longest + 1));
  std::vector<unsigned char> bytes(static_cast<size_t>(offsets.back()));
  for (auto& byte : bytes) byte = static_cast<unsigned char>(random.below(256));
  const auto together = hash(bytes, IntegerArray(offsets, wide), count);
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const std::vector<unsigned char> alone(bytes.begin() + offsets[i], bytes.begin() + offsets[i + 1]);
    const IntegerArray whole({0, static_cast<int64_t>(alone.size())}, !wide);
    CHECK(hash(alone, whole, 1)[0] == together[i]);
  }
}

void test_bad_offsets() {
  const std::vector<unsigned char> bytes(8);
  std::vector<uint64_t> hashes(2);
  for (const auto& offsets : {std::vector<int64_t>{0, 4, 9}, {0, 4, 3}, {0, 4, -1}}) {
    CHECK(hash_strings({bytes.data(), 8, offsets.data(), true, 2}, 0, hashes.data()) == 1);
  }
}

// Memory of exactly its size, and the whole range of ids and spans.
void test_ids(Random& random, int64_t count) {
  std::vector<int64_t> ids(static_cast<size_t>(count)), hashes(ids.size());
  for (auto& id : ids) id = random.coin() ? random.below(INT64_MAX) : INT64_MIN + random.below(INT64_MAX);
  const int64_t span = random.coin() ? 1 + random.below(100) : INT64_MAX;
  hash_ids(ids.data(), count, span, hashes.data());
  for (size_t i = 0; i < ids.size(); ++i) CHECK(hashes[i] == static_cast<int64_t>((hash_id(ids[i]) >> 1) % static_cast<uint64_t>(span)));
}

}  // namespace

void test_hashing() {
  Random random(5);
  CHECK(hash({}, IntegerArray({0, 0}, false), 1)[0] == 0xEF46DB3751D8E999u);
  CHECK(hash({'a', 'b', 'c'}, IntegerArray({0, 3}, false), 1)[0] == 0x44BC2CF5AD770999u);
  for (int i = 0; i < 300; ++i) test_together(random, random.below(30), random.below(150), random.coin());
  test_bad_offsets();
  for (int64_t count = 0; count < 20; ++count) test_ids(random, count);
}

}  // namespace rowwise
