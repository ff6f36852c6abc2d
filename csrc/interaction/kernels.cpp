// Compiled once per instruction set, see csrc/README.md. The vectors of one sample are brought into the first cache as
// floats, each filled up with zeros to whole blocks; all arithmetic happens there, and the results leave in one sweep.
#include "interaction/interaction.h"

#include "block.h"
#include "pieces.h"
#include "scratch.h"

namespace rowwise {
namespace ROWWISE_ISA {
namespace {

constexpr int64_t kChunk = 4 * kBlock;                // columns held in registers at a time
constexpr int64_t kSmallProducts = int64_t{1} << 17;  // multiplications that are not worth waking a thread
constexpr int64_t kSamples = 64;                      // a piece

int64_t whole_blocks(int64_t n) { return (n + kBlock - 1) / kBlock * kBlock; }

template <class T>
void load(const T* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) Block::load(from + i).store(to + i);
  if (i < n) Block::load_head(from + i, static_cast<int>(n - i)).store(to + i);
}

template <class T>
void store(const float* from, int64_t n, T* to) {
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) Block::load(from + i).store(to + i);
  if (i < n) Block::load(from + i).store_head(to + i, static_cast<int>(n - i));
}

// Memory for one sample; every array is in whole blocks.
struct Workspace {
  int64_t stride;  // of a vector
  float* x;        // vectors x stride
  float* row;      // a sample's row of the output or of its gradient
  float* factors;  // vectors x vectors, backward only
  float* grad;     // stride, backward only

  Workspace(const Vectors& v, char* memory) {
    stride = whole_blocks(v.dim);
    x = reinterpret_cast<float*>(memory);
    row = x + v.vectors() * stride;
    factors = row + whole_blocks(v.width());
    grad = factors + whole_blocks(v.vectors() * v.vectors());
  }

  static size_t bytes(const Vectors& v) {
    const int64_t stride = whole_blocks(v.dim);
    const int64_t floats = (v.vectors() + 1) * stride + whole_blocks(v.width()) + whole_blocks(v.vectors() * v.vectors());
    return static_cast<size_t>(floats) * sizeof(float);
  }

  template <class T>
  void load_vectors(const Vectors& v, int64_t sample) const {
    load(static_cast<const T*>(v.dense) + sample * v.dim, v.dim, x);
    const T* sparse = static_cast<const T*>(v.sparse) + sample * v.features * v.dim;
    for (int64_t f = 0; f < v.features; ++f) load(sparse + f * v.dim, v.dim, x + (f + 1) * stride);
  }
};

// Adds the part of all dot products that `kBlocks` blocks of columns have.
template <int kBlocks>
void add_dots(const float* x, int64_t stride, int64_t vectors, float* dots) {
  for (int64_t i = 0; i + 1 < vectors; ++i) {
    Block left[kBlocks];
    for (int b = 0; b < kBlocks; ++b) left[b] = Block::load(x + i * stride + b * kBlock);
    for (int64_t j = i + 1; j < vectors; ++j) {
      const float* right = x + j * stride;
      Block sum = left[0] * Block::load(right);
      for (int b = 1; b < kBlocks; ++b) sum = sum + left[b] * Block::load(right + b * kBlock);
      *dots++ += sum.sum();
    }
  }
}

// One gradient's columns: the sum of all vectors, each times its factor.
template <int kBlocks>
void weighted_sum(const float* x, int64_t stride, int64_t vectors, const float* factors, float* grad) {
  Block sum[kBlocks];
  for (int b = 0; b < kBlocks; ++b) sum[b] = Block::fill(0);
  for (int64_t j = 0; j < vectors; ++j) {
    for (int b = 0; b < kBlocks; ++b) sum[b] = sum[b] + Block::load(x + j * stride + b * kBlock) * factors[j];
  }
  for (int b = 0; b < kBlocks; ++b) sum[b].store(grad + b * kBlock);
}

// Calls body(number of blocks, as a type; first column) until all columns are done.
template <int n>
struct Blocks {
  static constexpr int count = n;
};
template <class Body>
void for_chunks(int64_t stride, const Body& body) {
  int64_t column = 0;
  for (; column + kChunk <= stride; column += kChunk) body(Blocks<4>{}, column);
  switch ((stride - column) / kBlock) {
    case 1: return body(Blocks<1>{}, column);
    case 2: return body(Blocks<2>{}, column);
    case 3: return body(Blocks<3>{}, column);
  }
}

// Has memory of the next sample come while this one is computed: there is as much to compute as to move.
template <bool kToWrite, class T>
ROWWISE_INLINE void fetch(const T* from, int64_t count) {
  const char* line = reinterpret_cast<const char*>(from);
  for (const char* end = line + count * sizeof(T); line < end; line += 64) __builtin_prefetch(line, kToWrite, 3);
}

template <class T>
void forward_sample(const Vectors& v, const Workspace& w, int64_t sample, void* output) {
  const int64_t numbers = v.features * v.dim;
  T* row = static_cast<T*>(output) + sample * v.width();
  w.load_vectors<T>(v, sample);
  if (sample + 1 < v.samples) {
    fetch<false>(static_cast<const T*>(v.sparse) + (sample + 1) * numbers, numbers);
    fetch<true>(row + v.width(), v.width());
  }
  for (int64_t i = 0; i < v.dim; ++i) w.row[i] = w.x[i];
  for (int64_t i = v.dim; i < v.width(); ++i) w.row[i] = 0;
  for_chunks(w.stride, [&](auto blocks, int64_t column) {
    add_dots<decltype(blocks)::count>(w.x + column, w.stride, v.vectors(), w.row + v.dim);
  });
  store(w.row, v.width(), row);
}

template <class T>
void backward_sample(const Vectors& v, const Workspace& w, int64_t sample, const void* grad, void* grad_dense,
                     void* grad_sparse) {
  const int64_t n = v.vectors(), numbers = v.features * v.dim;
  const T* row = static_cast<const T*>(grad) + sample * v.width();
  T* grads = static_cast<T*>(grad_sparse) + sample * numbers;
  w.load_vectors<T>(v, sample);
  load(row, v.width(), w.row);
  if (sample + 1 < v.samples) {
    fetch<false>(static_cast<const T*>(v.sparse) + (sample + 1) * numbers, numbers);
    fetch<false>(row + v.width(), v.width());
    fetch<true>(grads + numbers, numbers);
  }
  const float* pair = w.row + v.dim;
  for (int64_t i = 0; i < n; ++i) {
    w.factors[i * n + i] = 0;
    for (int64_t j = i + 1; j < n; ++j) w.factors[i * n + j] = w.factors[j * n + i] = *pair++;
  }
  for (int64_t i = 0; i < n; ++i) {
    for_chunks(w.stride, [&](auto blocks, int64_t column) {
      weighted_sum<decltype(blocks)::count>(w.x + column, w.stride, n, w.factors + i * n, w.grad + column);
    });
    if (i == 0) {
      for (int64_t c = 0; c < v.dim; ++c) w.grad[c] += w.row[c];
      store(w.grad, v.dim, static_cast<T*>(grad_dense) + sample * v.dim);
    } else {
      store(w.grad, v.dim, grads + (i - 1) * v.dim);
    }
  }
}

// Calls body(workspace, sample) for all samples, on up to `threads` threads.
template <class Body>
void for_samples(const Vectors& v, int threads, const Body& body) {
  const bool small = v.samples * v.pairs() * v.dim < kSmallProducts;
  in_pieces(small ? 1 : threads, (v.samples + kSamples - 1) / kSamples, [&](int64_t piece, int) {
    Scratch memory(Workspace::bytes(v));
    const Workspace workspace(v, memory.data());
    const int64_t begin = piece * kSamples, end = begin + kSamples;
    for (int64_t sample = begin; sample < end && sample < v.samples; ++sample) body(workspace, sample);
  });
}

// Calls body with a value of the type that the numbers are stored in.
template <class Body>
void at_type(Float dtype, const Body& body) {
  switch (dtype) {
    case Float::f32: return body(float{});
    case Float::f16: return body(Half{});
    case Float::bf16: return body(Bfloat16{});
  }
}

void forward(const Vectors& v, void* output, int threads) {
  at_type(v.dtype, [&](auto type) {
    for_samples(v, threads, [&](const Workspace& workspace, int64_t sample) {
      forward_sample<decltype(type)>(v, workspace, sample, output);
    });
  });
}

void backward(const Vectors& v, const void* grad, void* grad_dense, void* grad_sparse, int threads) {
  at_type(v.dtype, [&](auto type) {
    for_samples(v, threads, [&](const Workspace& workspace, int64_t sample) {
      backward_sample<decltype(type)>(v, workspace, sample, grad, grad_dense, grad_sparse);
    });
  });
}

}  // namespace

extern const InteractionKernels kInteraction = {forward, backward};

}  // namespace ROWWISE_ISA
}  // namespace rowwise
