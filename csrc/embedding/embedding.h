// Look-ups in several tables at once, and the gradients and updates that go with them.
//
// A *slot* is one feature looked up in one table. Its ids lie in bags: bag b holds the ids at positions
// offsets[b] .. offsets[b + 1] of `ids`; without offsets every id is a bag of its own (a sequence). A slot reads or
// writes one row of `dim` numbers a bag.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hashing/hashing.h"

namespace rowwise {

enum class Float : int32_t { f32, f16, bf16 };

enum class Pooling : int32_t { sum, mean, none };  // none: a bag of exactly one id

// What becomes of an id outside [0, num_embeddings).
enum class Policy : int32_t {
  error,   // reported, see Failure
  remap,   // row base + hash(id) % span: further rows behind num_embeddings, one unknown row, or the first rows
  clamp,   // the first row, or row num_embeddings - 1
  ignore,  // as if it were not in the bag
  rows,    // ids are rows that were chosen before: -1 is as if it were not in the bag, others are reported
};

// A table, or the shard of it that `weight` holds: its rows [first_row, first_row + rows). Which row an id chooses is
// decided for the whole table; in a shard, rows of other shards add nothing and get no gradient.
struct Table {
  void* weight = nullptr;  // rows x dim, of `dtype`
  Float dtype = Float::f32;
  int64_t dim = 0;
  int64_t num_embeddings = 0;
  Policy policy = Policy::error;
  int64_t base = 0, span = 1;
  int64_t first_row = 0, rows = 0;
  int64_t direct = 0;  // ids [first_row, first_row + direct) are rows themselves, and of this shard

  void set_shard(int64_t first, int64_t count) {
    first_row = first;
    rows = count;
    const int64_t left = num_embeddings - first;
    direct = left < 0 ? 0 : left < count ? left : count;
  }
};

struct Slot {
  int32_t table = 0;
  Pooling pooling = Pooling::sum;
  const void* ids = nullptr;
  const void* offsets = nullptr;        // bags + 1 of them, or none
  const float* sample_weights = nullptr;  // beside ids, or none
  const int64_t* divisors = nullptr;    // of a mean, one a bag, or none: the number of ids that have a row
  int64_t bags = 0;
  void* rows = nullptr;                 // output, or gradient of the output: bag b at rows + b * stride; may be none
                                        // (choose_rows: int64 output, one a bag)
  int64_t stride = 0;                   // in elements
};

struct Batch {
  const Table* tables = nullptr;
  int64_t num_tables = 0;
  const Slot* slots = nullptr;
  int64_t num_slots = 0;
  bool wide_ids = true, wide_offsets = true;  // int64, else int32
  Float rows_dtype = Float::f32;
  int threads = 1;
};

// The first id (by slot, then position) that the policy `error` refuses, or a bag that `Pooling::none` does.
struct Failure {
  enum Kind : int32_t { nothing, id, bag } kind = nothing;
  int64_t slot = 0, bag_index = 0, value = 0;  // the id, or the number of ids in the bag
};

enum class Rule : int32_t {
  sgd, adagrad, rowwise_adagrad, adam, partial_rowwise_adam, lamb, partial_rowwise_lamb, lars_sgd
};

// An optimizer of one table. `first` and `second` are its states: rows x dim, or one number a row.
struct Optimizer {
  Rule rule = Rule::sgd;
  float lr = 0, eps = 0, beta1 = 0, beta2 = 0, weight_decay = 0, momentum = 0, dampening = 0, eta = 0;
  float max_gradient = 0;      // 0: no clipping
  bool decoupled = false, nesterov = false;
  bool dense = false;          // rows that no id chose are updated as well, by a gradient of zero
  float row_decay = 0;         // times the weights of a row, added to its gradient for each id that chose it
  double step = 1;             // this update's number, from 1
  float* first = nullptr;
  float* second = nullptr;
};

// Where the summed gradient of a table's rows goes: into `dense` (rows x dim, zeroed by the caller), as pairs into
// `rows` and `values` (room for every id), or, where `optimizer` is set, straight into the table.
struct Sink {
  void* dense = nullptr;
  int64_t* rows = nullptr;
  void* values = nullptr;
  int64_t count = 0;           // out: pairs written
  const Optimizer* optimizer = nullptr;
  bool active = false;
};

// One table in an update in two halves (`split_update.h`). All but the share is what the first half finds, for the second.
struct SplitTable {
  float share = 1;             // of all columns of the table, those that are here
  bool every_row = false;      // numbers are one a row, else those of bags and then of rows that several ids chose
  bool swapped = false;        // which of two arrays has the sorted entries
  int64_t bags = 0, ids = 0;
  int64_t count = 0;           // of entries, one for each id that has a row
  int64_t numbers = 0;         // how many there are
  int64_t first = 0;           // where they begin among those given, set between the halves
  int64_t memory = 0, found = 0;  // where its entries, and the numbers found, begin in the memory of all tables
};

// Each instruction set has one of these; `embedding_kernels()` is the one to use here.
struct EmbeddingKernels {
  // Slot.rows[bag] = pooled rows of the bag. `out_of_range` counts, per table, the ids outside [0, num_embeddings).
  Failure (*forward)(const Batch& batch, int64_t* out_of_range);

  // Slot.rows[i] = the row of the whole table that id i of the slot chooses, -1 for none. Slots have no offsets.
  Failure (*choose_rows)(const Batch& batch, int64_t* out_of_range);

  // For each active sink (one a table): sum the gradient of every row over all ids that chose it, in order of slot and
  // position whatever the number of threads, and deliver it.
  void (*backward)(const Batch& batch, Sink* sinks);

  // Adds to gradient[i], for the id at position i of every slot: dot(gradient of its bag, its row). All slots have the
  // same number of bags.
  void (*weights_backward)(const Batch& batch, float* gradient);

  // An update in two halves of the tables with active sinks, which have row-wise Adagrad that leaves rows alone that no
  // id chose: how much memory it wants; then, in that memory, the first half, and the second by the numbers given.
  size_t (*plan_split)(const Batch& batch, const Sink* sinks, SplitTable* splits);
  void (*run_split)(const Batch& batch, const Sink* sinks, SplitTable* splits, char* memory, const float* given);

  // Whether `count` offsets never fall and stay within [0, values].
  bool (*offsets_fit)(const void* offsets, bool wide, int64_t count, int64_t values);
};

const EmbeddingKernels& embedding_kernels();

namespace baseline {
extern const EmbeddingKernels kEmbedding;
}
namespace avx2 {
extern const EmbeddingKernels kEmbedding;
}
namespace avx512 {
extern const EmbeddingKernels kEmbedding;
}

}  // namespace rowwise
