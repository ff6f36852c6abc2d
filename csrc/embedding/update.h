// One row of one table, given its summed gradient: the update rules.
//
// Letters: w row of the table, g gradient, m first and v second state. Every rule reads w, and writes w and the states,
// sixteen columns at a time. The plain-PyTorch form of each is in torchrec/ops/embedding/updates.py.
#pragma once

#include "block.h"
#include "embedding/embedding.h"

namespace rowwise {
namespace ROWWISE_ISA {

// Calls body(column, n) for each block of `dim` columns; n is 16 but for the last.
template <class Body>
ROWWISE_INLINE void for_blocks(int64_t dim, const Body& body) {
  int64_t column = 0;
  for (; column + kBlock <= dim; column += kBlock) body(column, kBlock);
  if (column < dim) body(column, static_cast<int>(dim - column));
}

template <class T>
ROWWISE_INLINE Block load_block(const T* x, int n) {
  return n == kBlock ? Block::load(x) : Block::load_head(x, n);
}

template <class T>
ROWWISE_INLINE void store_block(const Block& block, T* y, int n) {
  n == kBlock ? block.store(y) : block.store_head(y, n);
}

template <class T>
ROWWISE_INLINE float sum_of_squares(const T* x, int64_t dim) {
  Block sum = Block::fill(0);
  for_blocks(dim, [&](int64_t c, int n) {
    const Block block = load_block(x + c, n);
    sum = sum + block * block;
  });
  return sum.sum();
}

// What every row of an update shares.
struct Step {
  const Optimizer& o;
  float correction1, correction2_sqrt;  // of Adam's moments: 1 - beta1^t, sqrt(1 - beta2^t)
  float decay;                          // of the row, decoupled: 1 - lr * weight_decay
  bool row_wise;

  explicit Step(const Optimizer& optimizer)
      : o(optimizer),
        correction1(static_cast<float>(1 - std::pow(static_cast<double>(optimizer.beta1), optimizer.step))),
        correction2_sqrt(static_cast<float>(std::sqrt(1 - std::pow(static_cast<double>(optimizer.beta2), optimizer.step)))),
        decay(optimizer.decoupled ? 1 - optimizer.lr * optimizer.weight_decay : 1),
        row_wise(optimizer.rule == Rule::rowwise_adagrad || optimizer.rule == Rule::partial_rowwise_adam ||
                 optimizer.rule == Rule::partial_rowwise_lamb) {}

  // Weight decay that is added to the gradient. LAMB and LARS have their own place for it.
  float added_decay() const {
    const bool own = o.rule == Rule::lamb || o.rule == Rule::partial_rowwise_lamb || o.rule == Rule::lars_sgd;
    return o.decoupled || own ? 0 : o.weight_decay;
  }
};

// Clip and L2 decay, for all rules; the gradient is written to `out` (dim floats; may be `g`) only where it changes.
template <class W>
ROWWISE_INLINE const float* prepare(const Step& s, const W* w, const float* g, float* out, int64_t dim) {
  const float decay = s.added_decay(), bound = s.o.max_gradient;
  if (decay == 0 && bound == 0) return g;
  for_blocks(dim, [&](int64_t c, int n) {
    Block x = load_block(g + c, n);
    if (bound != 0) x = clamp(x, -bound, bound);
    if (decay != 0) x = x + load_block(w + c, n) * decay;
    store_block(x, out + c, n);
  });
  return out;
}

template <class W>
ROWWISE_INLINE void update_sgd(const Step& s, W* w, const float* g, float* m, int64_t dim) {
  const Optimizer& o = s.o;
  const float kept = o.step == 1 ? 1 : 1 - o.dampening;
  for_blocks(dim, [&](int64_t c, int n) {
    const Block grad = load_block(g + c, n);
    Block step = grad;
    if (o.momentum != 0) {
      const Block moment = load_block(m + c, n) * o.momentum + grad * kept;
      store_block(moment, m + c, n);
      step = o.nesterov ? grad + moment * o.momentum : moment;
    }
    store_block(load_block(w + c, n) * s.decay - step * o.lr, w + c, n);
  });
}

template <class W>
ROWWISE_INLINE void update_adagrad(const Step& s, W* w, const float* g, float* v, int64_t dim) {
  for_blocks(dim, [&](int64_t c, int n) {
    const Block grad = load_block(g + c, n);
    const Block sum = load_block(v + c, n) + grad * grad;
    store_block(sum, v + c, n);
    store_block(load_block(w + c, n) * s.decay - grad * s.o.lr / (sqrt(sum) + s.o.eps), w + c, n);
  });
}

// Adam and LAMB, with a second moment a weight (v has dim numbers) or one a row. The moments are updated and the
// direction m^ / (sqrt(v^) + eps) [+ decay * w] is written to `u`.
template <class W>
ROWWISE_INLINE void adam_direction(const Step& s, const W* w, const float* g, float* m, float* v, float* u, int64_t dim,
                                   float decay) {
  const Optimizer& o = s.o;
  if (s.row_wise) *v = *v * o.beta2 + sum_of_squares(g, dim) / static_cast<float>(dim) * (1 - o.beta2);
  for_blocks(dim, [&](int64_t c, int n) {
    const Block grad = load_block(g + c, n);
    const Block moment = load_block(m + c, n) * o.beta1 + grad * (1 - o.beta1);
    store_block(moment, m + c, n);
    Block second;
    if (s.row_wise) {
      second = Block::fill(*v);
    } else {
      second = load_block(v + c, n) * o.beta2 + grad * grad * (1 - o.beta2);
      store_block(second, v + c, n);
    }
    Block direction = moment / s.correction1 / (sqrt(second) / s.correction2_sqrt + o.eps);
    if (decay != 0) direction = direction + load_block(w + c, n) * decay;
    store_block(direction, u + c, n);
  });
}

template <class W>
ROWWISE_INLINE void descend(W* w, const float* u, int64_t dim, float decay, float rate) {
  for_blocks(dim, [&](int64_t c, int n) {
    store_block(load_block(w + c, n) * decay - load_block(u + c, n) * rate, w + c, n);
  });
}

template <class W>
ROWWISE_INLINE void update_lamb(const Step& s, W* w, const float* g, float* m, float* v, float* u, int64_t dim) {
  adam_direction(s, w, g, m, v, u, dim, s.o.weight_decay);
  const float norm_w = std::sqrt(sum_of_squares(w, dim)), norm_u = std::sqrt(sum_of_squares(u, dim));
  const float trust = norm_w > 0 && norm_u > 0 ? norm_w / norm_u : 1;
  descend(w, u, dim, 1, s.o.lr * trust);
}

template <class W>
ROWWISE_INLINE void update_lars(const Step& s, W* w, const float* g, float* m, int64_t dim) {
  const Optimizer& o = s.o;
  const float norm_w = std::sqrt(sum_of_squares(w, dim)), norm_g = std::sqrt(sum_of_squares(g, dim));
  const float trust = norm_w > 0 && norm_g > 0 ? o.eta * norm_w / (norm_g + o.weight_decay * norm_w) : 1;
  const float rate = o.lr * trust;
  for_blocks(dim, [&](int64_t c, int n) {
    const Block row = load_block(w + c, n);
    Block step = (load_block(g + c, n) + row * o.weight_decay) * rate;
    if (o.momentum != 0) {
      step = load_block(m + c, n) * o.momentum + step;
      store_block(step, m + c, n);
    }
    store_block(row - step, w + c, n);
  });
}

// Whether rows that no id chose are to be updated: they are told to be, and a gradient of zero would move them.
ROWWISE_INLINE bool updates_all_rows(const Optimizer& o) {
  const bool has_moments = o.rule == Rule::adam || o.rule == Rule::partial_rowwise_adam || o.rule == Rule::lamb ||
                           o.rule == Rule::partial_rowwise_lamb;
  const bool has_momentum = (o.rule == Rule::sgd || o.rule == Rule::lars_sgd) && o.momentum != 0;
  return o.dense && (has_moments || has_momentum || o.weight_decay != 0);
}

// Adam with a gradient of zero, on `count` numbers of rows that lie one behind the other: all of them in one go, and with
// one division each, as nothing but memory should be waited for.
template <class W>
ROWWISE_INLINE void update_adam_unseen(const Step& s, W* w, float* m, float* v, int64_t count) {
  const Optimizer& o = s.o;
  const float rate = o.lr / s.correction1, scale = 1 / s.correction2_sqrt, l2 = s.added_decay();
  for_blocks(count, [&](int64_t c, int n) {
    const Block weight = load_block(w + c, n);
    Block moment = load_block(m + c, n) * o.beta1, second = load_block(v + c, n) * o.beta2;
    if (l2 != 0) {
      const Block grad = weight * l2;
      moment = moment + grad * (1 - o.beta1);
      second = second + grad * grad * (1 - o.beta2);
    }
    store_block(moment, m + c, n);
    store_block(second, v + c, n);
    store_block(weight * s.decay - moment * rate / (sqrt(second) * scale + o.eps), w + c, n);
  });
}

// Rows that are updated together, each with its summed gradient.
constexpr int kRows = 16;

struct Rows {
  int64_t dim;
  float* own;       // kRows x dim: room for the gradient of each row
  float* spare;     // dim
  int count = 0;
  int64_t row[kRows + 1];  // one more, as the last may be written before it is known to be one
  const float* grad[kRows];
  int64_t begin = 0, end[kRows + 1];  // of the entries of row k: from the end of that before, or `begin`, to end[k]

  Rows(int64_t columns, float* room) : dim(columns), own(room), spare(room + kRows * columns) {}
};

// The mean square of the gradient of each row, and of others 0.
ROWWISE_INLINE void mean_squares(const Rows& rows, float* means) {
  float square[kRows] = {};
  for (int k = 0; k < rows.count; ++k) square[k] = sum_of_squares(rows.grad[k], rows.dim);
  for (int k = 0; k < kRows; ++k) means[k] = square[k] / static_cast<float>(rows.dim);
}

// By the mean squares of the gradients: of all columns of a row, where some of them are elsewhere. In passes over the
// rows, so that their square roots and divisions, a long chain for one row, overlap.
template <class W>
ROWWISE_INLINE void update_rowwise_adagrad(const Step& s, W* weight, const Rows& rows, const float* means) {
  float sum[kRows], rate[kRows];
  for (int k = 0; k < rows.count; ++k) sum[k] = s.o.first[rows.row[k]] + means[k];
  for (int k = rows.count; k < kRows; ++k) sum[k] = 1;
  for (int k = 0; k < kRows; ++k) rate[k] = s.o.lr / (std::sqrt(sum[k]) + s.o.eps);
  for (int k = 0; k < rows.count; ++k) {
    s.o.first[rows.row[k]] = sum[k];
    if (s.o.lr != 0) descend(weight + rows.row[k] * rows.dim, rows.grad[k], rows.dim, s.decay, rate[k]);
  }
}

template <class W>
ROWWISE_INLINE void update_row(const Step& s, W* w, int64_t row, const float* g, float* spare, int64_t dim) {
  float* m = s.o.first ? s.o.first + row * dim : nullptr;
  float* v = s.o.second ? s.o.second + row * (s.row_wise ? 1 : dim) : nullptr;
  w += row * dim;
  switch (s.o.rule) {
    case Rule::sgd: return update_sgd(s, w, g, m, dim);
    case Rule::adagrad: return update_adagrad(s, w, g, m, dim);
    case Rule::adam:
    case Rule::partial_rowwise_adam:
      adam_direction(s, w, g, m, v, spare, dim, 0);
      return descend(w, spare, dim, s.decay, s.o.lr);
    case Rule::lamb:
    case Rule::partial_rowwise_lamb: return update_lamb(s, w, g, m, v, spare, dim);
    case Rule::lars_sgd: return update_lars(s, w, g, m, dim);
    case Rule::rowwise_adagrad: return;  // all rows together, above
  }
}

// Adds to the gradient of each row, in its own room, `decay` times its weights for each time it was looked up.
template <class W>
void add_weights(float decay, const W* weight, const Rows& rows) {
  for (int k = 0; k < rows.count; ++k) {
    const float factor = decay * static_cast<float>(rows.end[k] - (k > 0 ? rows.end[k - 1] : rows.begin));
    const W* w = weight + rows.row[k] * rows.dim;
    float* g = rows.own + k * rows.dim;
    for_blocks(rows.dim, [&](int64_t c, int n) {
      store_block(load_block(g + c, n) + load_block(w + c, n) * factor, g + c, n);
    });
  }
}

template <class W>
ROWWISE_INLINE void prepare_rows(const Step& s, const W* weight, Rows& rows) {
  for (int k = 0; k < rows.count; ++k)
    rows.grad[k] = prepare(s, weight + rows.row[k] * rows.dim, rows.grad[k], rows.own + k * rows.dim, rows.dim);
}

template <class W>
void update_rows(const Step& s, W* weight, Rows& rows) {
  prepare_rows(s, weight, rows);
  if (s.o.rule == Rule::rowwise_adagrad) {
    float means[kRows];
    mean_squares(rows, means);
    return update_rowwise_adagrad(s, weight, rows, means);
  }
  for (int k = 0; k < rows.count; ++k) update_row(s, weight, rows.row[k], rows.grad[k], rows.spare, rows.dim);
}

}  // namespace ROWWISE_ISA
}  // namespace rowwise
