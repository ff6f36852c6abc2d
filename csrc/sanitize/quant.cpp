#include "quant/quant.h"

#include <cmath>
#include <cstring>

#include "check.h"
#include "numbers.h"

namespace rowwise {
namespace {

const Format kFormats[] = {Format::f32, Format::f16, Format::bf16, Format::int8, Format::int4, Format::int2};

struct Rows {
  RowLayout layout;
  int64_t dim, count;
  std::vector<uint8_t> bytes;

  // Number i of row r, by a loop of its own.
  float at(int64_t r, int64_t i) const {
    const uint8_t* row = bytes.data() + r * layout.row_bytes;
    switch (layout.format) {
      case Format::f32: return read(Float::f32, reinterpret_cast<const char*>(row), i);
      case Format::f16: return read(Float::f16, reinterpret_cast<const char*>(row), i);
      case Format::bf16: return read(Float::bf16, reinterpret_cast<const char*>(row), i);
      default: break;
    }
    const int bits = bits_of(layout.format);
    const int64_t bit = i * bits;
    const int code = row[kHead + bit / 8] >> (bit % 8) & ((1 << bits) - 1);
    const float scale = read(Float::f16, reinterpret_cast<const char*>(row), 0);
    const float product = static_cast<float>(code) * scale;
    return product + read(Float::f16, reinterpret_cast<const char*>(row), 1);
  }
};

// Quantised by every instruction set and number of threads to the same bytes, in memory of exactly their size; and back.
Rows quantised(Random& random, int64_t count, int64_t dim) {
  Rows rows;
  rows.layout.format = random.among(kFormats);
  rows.dim = dim;
  rows.count = count;
  const int64_t unit = has_codes(rows.layout.format) ? 1 : bits_of(rows.layout.format) / 8;
  rows.layout.row_bytes = least_row_bytes(rows.layout.format, dim) + unit * random.below(9);
  Matrix weight;
  weight.dtype = random.among(kFloats);
  weight.rows = count;
  weight.dim = dim;
  const std::vector<char> data = random_numbers(random, weight.dtype, count * dim);
  weight.data = data.data();
  std::vector<float> bounds;
  for (int64_t i = 0; i < count; ++i) bounds.push_back(-2), bounds.push_back(static_cast<float>(random.below(4)));
  const float* within = random.coin() ? bounds.data() : nullptr;
  for (const QuantKernels* kernels : SUPPORTED(kQuant)) {
    for (int threads = 1; threads <= 3; ++threads) {
      std::vector<uint8_t> found(static_cast<size_t>(count * rows.layout.row_bytes), 0xAA);
      CHECK(kernels->quantize(weight, within, rows.layout, found.data(), threads) == -1);
      if (rows.bytes.empty()) rows.bytes = found;
      CHECK(found == rows.bytes);
      std::vector<float> back(static_cast<size_t>(count * dim), NAN);
      kernels->dequantize(found.data(), rows.layout, count, dim, back.data(), threads);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < dim; ++i) CHECK(back[static_cast<size_t>(r * dim + i)] == rows.at(r, i));
    }
  }
  return rows;
}

void test_what_is_not_finite(Random& random) {
  const int64_t dim = 1 + random.below(40);
  std::vector<float> x(static_cast<size_t>(3 * dim), 1.0f);
  x[static_cast<size_t>(dim + random.below(dim))] = random.coin() ? NAN : INFINITY;
  const RowLayout layout = {random.among(kFormats), 4 + 4 * dim};
  std::vector<uint8_t> rows(static_cast<size_t>(3 * layout.row_bytes));
  for (const QuantKernels* kernels : SUPPORTED(kQuant))
    CHECK(kernels->quantize({x.data(), Float::f32, 3, dim}, nullptr, layout, rows.data(), 2) == 1);
}

void test_forward(Random& random, int64_t bags, int64_t longest) {
  const int64_t dims[] = {1, 2, 3, 5, 15, 16, 17, 31, 64, 130, 257};
  const Policy policies[] = {Policy::clamp, Policy::ignore, Policy::remap};
  std::vector<Rows> weights;
  std::vector<Table> tables;
  std::vector<RowLayout> layouts;
  int64_t width = 0;
  for (int t = 0; t < 3; ++t) {
    weights.push_back(quantised(random, 1 + random.below(20), random.among(dims)));
    Table table;
    table.dim = weights.back().dim;
    table.num_embeddings = weights.back().count;
    table.policy = random.among(policies);
    table.span = table.num_embeddings;
    table.set_shard(0, weights.back().count);
    tables.push_back(table);
    layouts.push_back(weights.back().layout);
    width += table.dim;
  }
  for (int t = 0; t < 3; ++t) tables[t].weight = weights[t].bytes.data();
  std::vector<int64_t> ids, offsets = {0};
  for (int64_t b = 0; b < bags; ++b) {
    for (int64_t i = random.below(longest + 1); i > 0; --i) ids.push_back(random.below(30) - 3);
    offsets.push_back(static_cast<int64_t>(ids.size()));
  }
  const bool weighted = random.coin();
  std::vector<float> sample_weights;
  for (size_t i = 0; i < ids.size(); ++i) sample_weights.push_back(random.number());
  std::vector<float> expected(static_cast<size_t>(bags * width)), first;
  std::vector<Slot> slots(3);
  int64_t column = 0;
  for (int t = 0; t < 3; ++t) {
    Slot& slot = slots[t];
    slot.table = t;
    slot.pooling = random.coin() ? Pooling::sum : Pooling::mean;
    slot.ids = ids.data();
    slot.offsets = offsets.data();
    slot.sample_weights = weighted ? sample_weights.data() : nullptr;
    slot.bags = bags;
    slot.stride = width;
    for (int64_t b = 0; b < bags; ++b) {
      int64_t count = 0;
      float* y = expected.data() + b * width + column;
      for (int64_t i = offsets[b]; i < offsets[b + 1]; ++i) {
        const Table& table = tables[t];
        const bool known = ids[i] >= 0 && ids[i] < table.num_embeddings;
        if (!known && table.policy == Policy::ignore) continue;
        const int64_t row = known ? ids[i] : table.policy == Policy::clamp ? (ids[i] < 0 ? 0 : table.num_embeddings - 1) : hash_into(ids[i], table.span);
        ++count;
        for (int64_t d = 0; d < table.dim; ++d) {
          const float value = weights[t].at(row, d);
          y[d] = y[d] + (weighted ? value * sample_weights[i] : value);
        }
      }
      for (int64_t d = 0; slot.pooling == Pooling::mean && count > 1 && d < tables[t].dim; ++d) y[d] /= static_cast<float>(count);
    }
    column += tables[t].dim;
  }
  for (const QuantKernels* kernels : SUPPORTED(kQuant)) {
    for (int threads = 1; threads <= 3; ++threads) {
      std::vector<float> output(expected.size(), NAN);
      int64_t at = 0, out_of_range[3] = {};
      for (int t = 0; t < 3; ++t) slots[t].rows = output.data() + at, at += tables[t].dim;
      Batch batch;
      batch.tables = tables.data(), batch.num_tables = 3, batch.slots = slots.data(), batch.num_slots = 3;
      batch.threads = threads;
      CHECK(kernels->forward(batch, layouts.data(), out_of_range).kind == Failure::nothing);
      CHECK(output == expected);
    }
  }
}

}  // namespace

void test_quant() {
  Random random(9);
  for (int i = 0; i < 60; ++i) test_what_is_not_finite(random);
  for (int i = 0; i < 150; ++i) test_forward(random, random.below(9), 4);
  test_forward(random, 900, 12);  // enough work for several threads
}

}  // namespace rowwise
