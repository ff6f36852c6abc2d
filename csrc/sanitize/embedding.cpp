#include "embedding/embedding.h"

#include <cmath>
#include <cstring>

#include "check.h"
#include "numbers.h"
#include "scratch.h"

namespace rowwise {
namespace {

// The ids of one feature: bag b holds positions offsets[b] .. offsets[b + 1] of all ids of the batch.
struct Feature {
  IntegerArray offsets;
  bool single;  // exactly one id a bag
};

// A batch that owns its memory. Slots stand side by side in one matrix, as the outputs of a collection do.
struct Case {
  std::vector<Table> tables;
  std::vector<std::vector<char>> weights;
  std::vector<int64_t> rows;  // of each weight: of a table, or of the shard of one
  IntegerArray ids{{}, true};
  std::vector<float> sample_weights;  // beside the ids
  std::vector<int64_t> divisors;      // of the bags of any slot
  std::vector<Feature> features;
  std::vector<Slot> slots;
  std::vector<size_t> feature_of;  // of each slot
  std::vector<char> matrix;
  int64_t stride = 0, bags = 0;
  bool wide_offsets = true, sequences = false;
  Float rows_dtype = Float::f32;

  Batch batch(int threads) const {
    return {tables.data(), static_cast<int64_t>(tables.size()), slots.data(), static_cast<int64_t>(slots.size()),
            ids.wide,      wide_offsets,                        rows_dtype,   threads};
  }
};

struct Shape {
  int64_t max_slots, max_rows, max_bags, max_ids, max_dim;
  bool sound;  // no id or bag that an error is the answer to
};

const Policy kPolicies[] = {Policy::error, Policy::remap, Policy::clamp, Policy::ignore, Policy::rows};

void add_table(Random& random, const Shape& shape, Case& c) {
  const int64_t dims[] = {1, 3, 4, 15, 16, 17, 31, 64, 130, 257};
  Table table;
  do table.dim = random.among(dims); while (table.dim > shape.max_dim);
  table.dtype = random.among(kFloats);
  table.policy = random.among(kPolicies);
  table.num_embeddings = 1 + random.below(shape.max_rows);
  int64_t rows = table.num_embeddings;
  if (table.policy == Policy::remap) {
    table.base = random.coin() ? table.num_embeddings : 0;
    table.span = table.base ? 1 + random.below(5) : table.num_embeddings;
    rows = table.base + table.span;
  }
  const int64_t first = random.coin() ? random.below(rows) : 0;
  table.set_shard(first, first || random.coin() ? 1 + random.below(rows - first) : rows);
  c.weights.push_back(random_numbers(random, table.dtype, table.rows * table.dim));
  c.rows.push_back(table.rows);
  c.tables.push_back(table);
}

// Ids that are rows of every table, or, where that is no error or an error is wanted, any.
std::vector<int64_t> random_ids(Random& random, const Case& c, const Shape& shape, int64_t count) {
  int64_t least = INT64_MAX, most = 0;
  bool any = true, none = true;  // whether any id will do, and whether -1 will
  for (const Table& table : c.tables) {
    least = table.num_embeddings < least ? table.num_embeddings : least;
    most = table.num_embeddings > most ? table.num_embeddings : most;
    any = any && !(shape.sound && (table.policy == Policy::error || table.policy == Policy::rows));
    none = none && !(shape.sound && table.policy == Policy::error);
  }
  const int64_t extremes[] = {-1, least, most, c.ids.wide ? INT64_MAX : INT32_MAX, c.ids.wide ? INT64_MIN : INT32_MIN};
  std::vector<int64_t> ids(static_cast<size_t>(count));
  for (auto& id : ids) {
    const bool odd = random.below(12) == 0;
    id = any && odd ? random.among(extremes) : none && odd ? -1 : random.below(any ? most : least);
  }
  return ids;
}

void add_feature(Random& random, const Shape& shape, Case& c, int64_t* position) {
  std::vector<int64_t> offsets = {*position};
  const bool single = random.below(3) == 0;
  for (int64_t bag = 0; bag < c.bags; ++bag) {
    int64_t length = random.below(5) == 0 ? 0 : random.below(shape.max_ids + 1);
    if (single) length = !shape.sound && random.below(30) == 0 ? 2 : 1;
    offsets.push_back(*position += length);
  }
  c.features.push_back({{offsets, c.wide_offsets}, single});
}

void add_slot(Random& random, Case& c) {
  Slot slot;
  const size_t f = static_cast<size_t>(random.below(static_cast<int64_t>(c.features.size())));
  const Feature& feature = c.features[f];
  slot.table = static_cast<int32_t>(random.below(static_cast<int64_t>(c.tables.size())));
  const Pooling poolings[] = {Pooling::sum, Pooling::mean, feature.single ? Pooling::none : Pooling::sum};
  slot.pooling = random.among(poolings);
  slot.bags = c.bags;
  slot.ids = c.ids.data();
  slot.offsets = feature.offsets.data();
  if (random.coin()) slot.sample_weights = c.sample_weights.data();
  if (random.coin()) slot.divisors = c.divisors.data();
  if (c.sequences && feature.single && feature.offsets[c.bags] - feature.offsets[0] == c.bags) {
    const int64_t first = feature.offsets[0];
    slot.pooling = Pooling::none;
    slot.ids = c.ids.data() + first * c.ids.width();
    slot.offsets = nullptr;
    slot.divisors = nullptr;
    if (slot.sample_weights) slot.sample_weights += first;
  }
  slot.stride = c.stride;  // its first column, until the width of the matrix is known
  c.stride += c.tables[static_cast<size_t>(slot.table)].dim;
  c.slots.push_back(slot);
  c.feature_of.push_back(f);
}

void make_case(Random& random, const Shape& shape, Case& c) {
  c.ids.wide = random.coin();
  c.wide_offsets = random.coin();
  c.sequences = random.coin();
  c.rows_dtype = random.among(kFloats);
  c.bags = random.below(shape.max_bags + 1);
  for (int64_t n = 1 + random.below(3); n > 0; --n) add_table(random, shape, c);
  int64_t positions = random.below(3);  // the first feature need not start at the first id
  for (int64_t n = 1 + random.below(4); n > 0; --n) add_feature(random, shape, c, &positions);
  c.ids = IntegerArray(random_ids(random, c, shape, positions), c.ids.wide);
  c.sample_weights.resize(static_cast<size_t>(positions));
  for (float& weight : c.sample_weights) weight = random.number();
  c.divisors.resize(static_cast<size_t>(c.bags));
  for (int64_t& divisor : c.divisors) divisor = random.below(5);
  for (int64_t n = random.below(shape.max_slots + 1); n > 0; --n) add_slot(random, c);
  c.matrix = random_numbers(random, c.rows_dtype, c.bags * c.stride);
  for (size_t t = 0; t < c.tables.size(); ++t) c.tables[t].weight = c.weights[t].data();
  for (Slot& slot : c.slots) {
    slot.rows = c.bags ? c.matrix.data() + slot.stride * size_of(c.rows_dtype) : nullptr;
    slot.stride = c.stride;
  }
}

bool in_range(const Table& table, int64_t id) { return id >= 0 && id < table.num_embeddings; }

// The row of the whole table that an id chooses; -1 for none.
int64_t chosen_row(const Table& table, int64_t id) {
  if (in_range(table, id)) return id;
  if (table.policy == Policy::remap) return table.base + static_cast<int64_t>((hash_id(id) >> 1) % uint64_t(table.span));
  if (table.policy == Policy::clamp) return id < 0 ? 0 : table.num_embeddings - 1;
  return -1;
}

// The row of the weight; -1 for none.
int64_t row_here(const Table& table, int64_t id) {
  const int64_t row = chosen_row(table, id) - table.first_row;
  return chosen_row(table, id) >= 0 && row >= 0 && row < table.rows ? row : -1;
}

bool refused(const Table& table, int64_t id) {
  return chosen_row(table, id) < 0 && (table.policy == Policy::error || (table.policy == Policy::rows && id != -1));
}

bool counts_as_stray(const Table& table, int64_t id) { return table.policy != Policy::rows && !in_range(table, id); }

// Position of the first id of a bag, and one id, both counted from the first id of the slot.
int64_t first_of(const Case& c, size_t s, int64_t bag) {
  return c.slots[s].offsets ? c.features[c.feature_of[s]].offsets[bag] : bag;
}
int64_t id_at(const Case& c, size_t s, int64_t i) {
  return c.ids[c.slots[s].offsets ? i : c.features[c.feature_of[s]].offsets[0] + i];
}

// What the rows of a bag are divided by.
int64_t divisor(const Case& c, size_t s, int64_t bag) {
  const Slot& slot = c.slots[s];
  if (slot.pooling != Pooling::mean) return 1;
  if (slot.divisors) return slot.divisors[bag];
  int64_t count = 0;
  for (int64_t i = first_of(c, s, bag); i < first_of(c, s, bag + 1); ++i)
    count += chosen_row(c.tables[static_cast<size_t>(slot.table)], id_at(c, s, i)) >= 0;
  return count;
}

void test_forward(const Case& c, const EmbeddingKernels& kernels, int threads) {
  std::vector<char> expected = c.matrix;
  std::vector<int64_t> expected_counts(c.tables.size()), counts(c.tables.size());
  Failure failure;
  const auto fail = [&](Failure::Kind kind, size_t s, int64_t bag, int64_t value) {
    if (failure.kind == Failure::nothing) failure = {kind, static_cast<int64_t>(s), bag, value};
  };
  for (size_t s = 0; s < c.slots.size(); ++s) {
    const Slot& slot = c.slots[s];
    const Table& table = c.tables[static_cast<size_t>(slot.table)];
    for (int64_t bag = 0; bag < c.bags; ++bag) {
      std::vector<float> sum(static_cast<size_t>(table.dim));
      const int64_t begin = first_of(c, s, bag), end = first_of(c, s, bag + 1);
      if (slot.pooling == Pooling::none && end - begin != 1) fail(Failure::bag, s, bag, end - begin);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t id = id_at(c, s, i), row = row_here(table, id);
        expected_counts[static_cast<size_t>(slot.table)] += counts_as_stray(table, id);
        if (refused(table, id)) fail(Failure::id, s, bag, id);
        for (int64_t d = 0; row >= 0 && d < table.dim; ++d) {
          const float x = read(table.dtype, static_cast<const char*>(table.weight), row * table.dim + d);
          sum[static_cast<size_t>(d)] += slot.sample_weights ? x * slot.sample_weights[i] : x;
        }
      }
      const int64_t count = divisor(c, s, bag);
      char* to = expected.data() + (static_cast<char*>(slot.rows) - c.matrix.data());
      for (int64_t d = 0; d < table.dim; ++d) {
        const float x = sum[static_cast<size_t>(d)];
        write(c.rows_dtype, to, bag * slot.stride + d, count > 1 ? x / static_cast<float>(count) : x);
      }
    }
  }
  Case out = c;
  for (size_t s = 0; s < out.slots.size(); ++s)
    out.slots[s].rows = out.matrix.data() + (static_cast<char*>(c.slots[s].rows) - c.matrix.data());
  const Failure found = kernels.forward(out.batch(threads), counts.data());
  CHECK(found.kind == failure.kind && found.slot == failure.slot);
  CHECK(found.bag_index == failure.bag_index && found.value == failure.value);
  CHECK(counts == expected_counts);
  if (failure.kind != Failure::nothing) return;
  for (int64_t i = 0; i < c.bags * c.stride; ++i)
    CHECK(read(c.rows_dtype, out.matrix.data(), i) == read(c.rows_dtype, expected.data(), i));
}

void test_choose_rows(const Case& c, const EmbeddingKernels& kernels, int threads) {
  Case out = c;
  std::vector<std::vector<int64_t>> rows(c.slots.size());
  std::vector<int64_t> expected_counts(c.tables.size()), counts(c.tables.size());
  Failure failure;
  for (size_t s = 0; s < c.slots.size(); ++s) {
    const IntegerArray& offsets = c.features[c.feature_of[s]].offsets;
    const int64_t first = offsets[0];
    Slot& slot = out.slots[s];
    slot.bags = offsets[c.bags] - first;
    slot.ids = c.ids.data() + first * c.ids.width();
    slot.offsets = nullptr;
    rows[s].resize(static_cast<size_t>(slot.bags));
    slot.rows = rows[s].data();
    for (int64_t i = 0; i < slot.bags; ++i) {
      const Table& table = c.tables[static_cast<size_t>(slot.table)];
      const int64_t id = c.ids[first + i];
      expected_counts[static_cast<size_t>(slot.table)] += counts_as_stray(table, id);
      if (refused(table, id) && failure.kind == Failure::nothing) failure = {Failure::id, static_cast<int64_t>(s), i, id};
    }
  }
  const Failure found = kernels.choose_rows(out.batch(threads), counts.data());
  CHECK(found.kind == failure.kind && found.slot == failure.slot);
  CHECK(found.bag_index == failure.bag_index && found.value == failure.value);
  CHECK(counts == expected_counts);
  for (size_t s = 0; s < c.slots.size(); ++s) {
    const int64_t first = c.features[c.feature_of[s]].offsets[0];
    const Table& table = c.tables[static_cast<size_t>(c.slots[s].table)];
    for (size_t i = 0; i < rows[s].size(); ++i)
      CHECK(rows[s][i] == chosen_row(table, c.ids[first + static_cast<int64_t>(i)]));
  }
}

// The summed gradient of every row of table t, and which rows were chosen at all.
void expected_gradient(const Case& c, size_t t, std::vector<float>& sums, std::vector<bool>& touched) {
  const Table& table = c.tables[t];
  sums.assign(static_cast<size_t>(c.rows[t] * table.dim), 0);
  touched.assign(static_cast<size_t>(c.rows[t]), false);
  for (size_t s = 0; s < c.slots.size(); ++s) {
    const Slot& slot = c.slots[s];
    if (slot.table != static_cast<int32_t>(t)) continue;
    for (int64_t bag = 0; bag < c.bags; ++bag) {
      const int64_t count = divisor(c, s, bag);
      for (int64_t i = first_of(c, s, bag); i < first_of(c, s, bag + 1); ++i) {
        const int64_t row = row_here(table, id_at(c, s, i));
        if (row < 0) continue;
        touched[static_cast<size_t>(row)] = true;
        for (int64_t d = 0; d < table.dim; ++d) {
          float g = read(c.rows_dtype, static_cast<const char*>(slot.rows), bag * slot.stride + d);
          if (count > 1) g /= static_cast<float>(count);
          sums[static_cast<size_t>(row * table.dim + d)] += slot.sample_weights ? g * slot.sample_weights[i] : g;
        }
      }
    }
  }
}

int64_t num_ids(const Case& c, size_t t) {
  int64_t count = 0;
  for (size_t s = 0; s < c.slots.size(); ++s)
    if (c.slots[s].table == static_cast<int32_t>(t)) count += first_of(c, s, c.bags) - first_of(c, s, 0);
  return count;
}

void test_gradients(const Case& c, const EmbeddingKernels& kernels, int threads) {
  const size_t n = c.tables.size();
  std::vector<std::vector<char>> dense(n), values(n);
  std::vector<std::vector<int64_t>> rows(n);
  std::vector<Sink> dense_sinks(n), pair_sinks(n);
  for (size_t t = 0; t < n; ++t) {
    const int64_t bytes = c.tables[t].dim * size_of(c.tables[t].dtype);
    dense[t].resize(static_cast<size_t>(c.rows[t] * bytes));
    values[t].resize(static_cast<size_t>(num_ids(c, t) * bytes));
    rows[t].resize(static_cast<size_t>(num_ids(c, t)));
    dense_sinks[t].active = pair_sinks[t].active = true;
    dense_sinks[t].dense = dense[t].data();
    pair_sinks[t].values = values[t].data();
    pair_sinks[t].rows = rows[t].data();
  }
  kernels.backward(c.batch(threads), dense_sinks.data());
  kernels.backward(c.batch(threads), pair_sinks.data());
  for (size_t t = 0; t < n; ++t) {
    const Table& table = c.tables[t];
    std::vector<float> sums;
    std::vector<bool> touched;
    expected_gradient(c, t, sums, touched);
    int64_t pair = 0;
    for (int64_t row = 0; row < c.rows[t]; ++row) {
      const bool here = touched[static_cast<size_t>(row)];
      if (here) CHECK(pair < pair_sinks[t].count && rows[t][static_cast<size_t>(pair)] == row);
      for (int64_t d = 0; d < table.dim; ++d) {
        const float g = rounded(table.dtype, sums[static_cast<size_t>(row * table.dim + d)]);
        CHECK(read(table.dtype, dense[t].data(), row * table.dim + d) == g);
        if (here) CHECK(read(table.dtype, values[t].data(), pair * table.dim + d) == g);
      }
      pair += here;
    }
    CHECK(pair == pair_sinks[t].count);
  }
}

void test_weights_gradient(const Case& c, const EmbeddingKernels& kernels, int threads) {
  std::vector<float> gradient(c.sample_weights.size());
  std::vector<double> expected(c.sample_weights.size()), size(c.sample_weights.size(), 1.0);
  kernels.weights_backward(c.batch(threads), gradient.data());
  for (size_t s = 0; s < c.slots.size(); ++s) {
    const Slot& slot = c.slots[s];
    const Table& table = c.tables[static_cast<size_t>(slot.table)];
    for (int64_t bag = 0; bag < c.bags; ++bag) {
      const int64_t count = divisor(c, s, bag);
      for (int64_t i = first_of(c, s, bag); i < first_of(c, s, bag + 1); ++i) {
        const int64_t row = row_here(table, id_at(c, s, i));
        for (int64_t d = 0; row >= 0 && d < table.dim; ++d) {
          const double x = read(table.dtype, static_cast<const char*>(table.weight), row * table.dim + d);
          const double g = read(c.rows_dtype, static_cast<const char*>(slot.rows), bag * slot.stride + d);
          expected[static_cast<size_t>(i)] += x * g / static_cast<double>(count > 1 ? count : 1);
          size[static_cast<size_t>(i)] += std::fabs(x * g);
        }
      }
    }
  }
  for (size_t i = 0; i < gradient.size(); ++i) CHECK(std::fabs(gradient[i] - expected[i]) <= 1e-6 * size[i]);
}

// Tables and optimizer states after one fused update, in bytes.
std::vector<std::vector<char>> updated(const Case& before, const EmbeddingKernels& kernels, Optimizer optimizer, int threads) {
  Case c = before;
  const bool row_first = optimizer.rule == Rule::rowwise_adagrad;
  const bool row_second = optimizer.rule == Rule::partial_rowwise_adam || optimizer.rule == Rule::partial_rowwise_lamb;
  const size_t n = c.tables.size();
  std::vector<std::vector<float>> first(n), second(n);
  std::vector<Optimizer> optimizers(n, optimizer);
  std::vector<Sink> sinks(n);
  for (size_t t = 0; t < n; ++t) {
    first[t].assign(static_cast<size_t>(c.rows[t] * (row_first ? 1 : c.tables[t].dim)), 0.5f);
    second[t].assign(static_cast<size_t>(c.rows[t] * (row_second ? 1 : c.tables[t].dim)), 0.25f);
    c.tables[t].weight = c.weights[t].data();
    optimizers[t].first = first[t].data();
    optimizers[t].second = second[t].data();
    sinks[t].active = true;
    sinks[t].optimizer = &optimizers[t];
  }
  kernels.backward(c.batch(threads), sinks.data());
  std::vector<std::vector<char>> after = c.weights;
  for (size_t t = 0; t < n; ++t) {
    for (const auto& state : {first[t], second[t]}) {
      const char* bytes = reinterpret_cast<const char*>(state.data());
      after.emplace_back(bytes, bytes + state.size() * sizeof(float));
    }
  }
  return after;
}

// The same after an update in two halves, by the numbers that the first half has found of all columns.
std::vector<std::vector<char>> updated_in_halves(const Case& before, const EmbeddingKernels& kernels, const Optimizer& optimizer,
                                                 int threads) {
  Case c = before;
  const size_t n = c.tables.size();
  std::vector<std::vector<float>> first(n);
  std::vector<Optimizer> optimizers(n, optimizer);
  std::vector<Sink> sinks(n);
  std::vector<SplitTable> splits(n);
  for (size_t t = 0; t < n; ++t) {
    first[t].assign(static_cast<size_t>(c.rows[t]), 0.5f);
    c.tables[t].weight = c.weights[t].data();
    optimizers[t].first = first[t].data();
    sinks[t].active = true;
    sinks[t].optimizer = &optimizers[t];
  }
  const Batch batch = c.batch(threads);
  const Scratch memory(kernels.plan_split(batch, sinks.data(), splits.data()));
  kernels.run_split(batch, sinks.data(), splits.data(), memory.data(), nullptr);
  std::vector<float> given;
  for (SplitTable& split : splits) {
    split.first = static_cast<int64_t>(given.size());
    const float* found = reinterpret_cast<const float*>(memory.data() + split.found);
    given.insert(given.end(), found, found + split.numbers);
  }
  const float none = 0;
  kernels.run_split(batch, sinks.data(), splits.data(), memory.data(), given.empty() ? &none : given.data());
  std::vector<std::vector<char>> after = c.weights;
  for (const std::vector<float>& state : first) {
    const char* bytes = reinterpret_cast<const char*>(state.data());
    after.emplace_back(bytes, bytes + state.size() * sizeof(float));
  }
  return after;
}

Optimizer random_optimizer(Random& random) {
  const Rule rules[] = {Rule::sgd,  Rule::adagrad, Rule::rowwise_adagrad,      Rule::adam,
                        Rule::lamb, Rule::partial_rowwise_adam, Rule::partial_rowwise_lamb, Rule::lars_sgd};
  Optimizer o;
  o.rule = random.among(rules);
  o.lr = 0.125f;
  o.eps = 1e-8f;
  o.beta1 = 0.9f;
  o.beta2 = 0.999f;
  o.eta = 0.001f;
  o.weight_decay = random.coin() ? 0.01f : 0;
  o.momentum = random.coin() ? 0.9f : 0;
  o.nesterov = o.momentum > 0 && random.coin();
  o.decoupled = random.coin();
  o.max_gradient = random.coin() ? 1.0f : 0;
  o.dense = random.coin();
  o.row_decay = random.coin() ? 0.25f : 0;
  o.step = static_cast<double>(1 + random.below(3));
  return o;
}

// Plain SGD against its formula; every rule to the last bit the same on each instruction set and number of threads.
void test_updates(Random& random, const Case& c, const std::vector<const EmbeddingKernels*>& tables) {
  Optimizer sgd;
  sgd.lr = 0.125f;
  const auto descended = updated(c, *tables[0], sgd, 1);
  for (size_t t = 0; t < c.tables.size(); ++t) {
    std::vector<float> sums;
    std::vector<bool> touched;
    expected_gradient(c, t, sums, touched);
    const Float dtype = c.tables[t].dtype;
    for (int64_t i = 0; i < static_cast<int64_t>(sums.size()); ++i) {
      const float w = read(dtype, c.weights[t].data(), i) - sums[static_cast<size_t>(i)] * sgd.lr;
      CHECK(read(dtype, descended[t].data(), i) == rounded(dtype, w));
    }
  }
  const Optimizer optimizer = random_optimizer(random);
  const auto expected = updated(c, *tables[0], optimizer, 1);
  for (const EmbeddingKernels* kernels : tables)
    for (int threads = 1; threads <= 3; ++threads) CHECK(updated(c, *kernels, optimizer, threads) == expected);
  Optimizer halved = random_optimizer(random);
  halved.rule = Rule::rowwise_adagrad;
  halved.dense = false;
  auto whole = updated(c, *tables[0], halved, 1);
  for (size_t t = c.tables.size(); t-- > 0;) whole.erase(whole.begin() + static_cast<int64_t>(c.tables.size() + 2 * t + 1));
  for (const EmbeddingKernels* kernels : tables)
    for (int threads = 1; threads <= 3; ++threads) CHECK(updated_in_halves(c, *kernels, halved, threads) == whole);
}

}  // namespace

void test_embedding() {
  Random random(3);
  const auto tables = SUPPORTED(kEmbedding);
  const auto test = [&](const Shape& shape) {
    Case c;
    make_case(random, shape, c);
    for (const EmbeddingKernels* kernels : tables) {
      for (int threads = 1; threads <= 3; ++threads) {
        test_forward(c, *kernels, threads);
        test_choose_rows(c, *kernels, threads);
        if (!shape.sound) continue;
        test_gradients(c, *kernels, threads);
        if (!c.sequences) test_weights_gradient(c, *kernels, threads);
      }
    }
    if (shape.sound) test_updates(random, c, tables);
  };
  for (int i = 0; i < 1500; ++i) test({5, 40, 9, 6, 300, true});
  for (int i = 0; i < 1500; ++i) test({5, 40, 9, 6, 300, false});
  for (int i = 0; i < 6; ++i) test({4, 3000, 1500, 9, 40, true});  // enough work for several threads
}

}  // namespace rowwise
