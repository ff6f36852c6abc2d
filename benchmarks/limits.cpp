// What the machine can do: loops that move the bytes of a scenario, and nothing else.
//
//   limits memory                              memcpy and reads of 256 MB, in GB/s
//   limits look-up TABLES ROWS DIM BATCH LENGTH   sums of rows; in ms
//   limits training TABLES ROWS DIM BATCH LENGTH  the same, then row-wise Adagrad on ids that are sorted already; in ms
//   limits probe ROWS IDS                      a hash map of int64 keys, asked and counted; in ms
//
// Prints "ready", then for each line of input, a number of threads, one line of JSON. And two neighbours, who print
// "ready" and go on until they are ended:
//
//   limits spin                                counts
//   limits stream                              copies 256 MB again and again
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace {

using Step = std::function<void(int threads)>;

constexpr double kSeconds = 0.4;    // a round
constexpr int64_t kAhead = 32;      // rows that are fetched before they are needed
constexpr int64_t kPiece = 64;      // bags that a thread takes at a time
constexpr int64_t kBatches = 4;     // in turn, as in benchmarks/work.py: a cache should not hold the rows of the next one
constexpr size_t kHuge = size_t{1} << 21;
constexpr size_t kLarge = size_t{256} << 20;  // far beyond the last cache

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class T>
T* huge(size_t count) {
  const size_t unit = count * sizeof(T) < kHuge ? 64 : kHuge;  // small tables lie one behind the other
  const size_t bytes = (count * sizeof(T) + unit - 1) / unit * unit;
  void* p = std::aligned_alloc(unit, bytes);
  if (p == nullptr) std::exit(1);
  if (unit == kHuge) madvise(p, bytes, MADV_HUGEPAGE);
  std::memset(p, 0, bytes);
  return static_cast<T*>(p);
}

std::vector<double> milliseconds(const Step& step, int threads) {
  std::vector<double> times;
  for (int i = 0; i < 2; ++i) step(threads);
  const double end = now() + kSeconds;
  while (times.size() < 3 || now() < end) {
    const double start = now();
    step(threads);
    times.push_back((now() - start) * 1e3);
  }
  return times;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

inline void fetch(const void* row, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(static_cast<const char*>(row) + b, 0, 2);
}

struct Tables {
  int64_t tables, rows, batch, length;
  std::vector<float*> weights, state;
  std::vector<int32_t> ids;                 // bag after bag, table after table, batch after batch
  float *out, *gradients;                   // batch x tables x DIM
  std::vector<std::vector<int32_t>> order;  // of each table of each batch: its ids' places, by row

  int64_t size() const { return batch * length; }  // ids of a table
};

// The compiler knows DIM, so sums stay in registers.
template <int64_t DIM>
void look_up(const Tables& t, int64_t turn, int threads) {
  const int64_t pieces = t.batch / kPiece;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < t.tables * pieces; ++task) {
    const int64_t table = task / pieces, first = task % pieces * kPiece;
    const float* w = t.weights[table];
    const int32_t* ids = &t.ids[(turn * t.tables + table) * t.size()];
    const int64_t end = t.size() - 1;
    for (int64_t b = first; b < first + kPiece; ++b) {
      float sum[DIM] = {};
      for (int64_t i = b * t.length; i < (b + 1) * t.length; ++i) {
        fetch(w + ids[std::min(i + kAhead, end)] * DIM, DIM * 4);
        const float* row = w + ids[i] * DIM;
        for (int64_t d = 0; d < DIM; ++d) sum[d] += row[d];
      }
      std::memcpy(t.out + (b * t.tables + table) * DIM, sum, sizeof sum);
    }
  }
}

// The rows of a table between two places of its order; neighbours with the same row belong together.
template <int64_t DIM>
void update(const Tables& t, int64_t turn, int64_t table, int64_t begin, int64_t end) {
  const std::vector<int32_t>& order = t.order[turn * t.tables + table];
  const int32_t* ids = &t.ids[(turn * t.tables + table) * t.size()];
  float *w = t.weights[table], *state = t.state[table];
  const auto gradient = [&](int64_t place) {
    return t.gradients + (order[place] / t.length * t.tables + table) * DIM;
  };
  const int64_t last = static_cast<int64_t>(order.size()) - 1;
  while (begin > 0 && begin < end && ids[order[begin]] == ids[order[begin - 1]]) ++begin;
  for (int64_t i = begin; i < end;) {
    const int64_t row = ids[order[i]];
    float sum[DIM] = {};
    for (; i <= last && ids[order[i]] == row; ++i) {
      const int64_t ahead = std::min(i + kAhead, last);
      fetch(w + ids[order[ahead]] * DIM, DIM * 4);
      fetch(gradient(ahead), DIM * 4);
      __builtin_prefetch(state + ids[order[ahead]], 0, 2);
      const float* g = gradient(i);
      for (int64_t d = 0; d < DIM; ++d) sum[d] += g[d];
    }
    float squares = 0;
    for (int64_t d = 0; d < DIM; ++d) squares += sum[d] * sum[d];
    const float rate = 0.01f / (std::sqrt(state[row] += squares / DIM) + 1e-8f);
    for (int64_t d = 0; d < DIM; ++d) w[row * DIM + d] -= rate * sum[d];
  }
}

template <int64_t DIM>
void train(const Tables& t, int64_t turn, int threads) {
  look_up<DIM>(t, turn, threads);
  const int64_t size = t.size(), pieces = std::max<int64_t>(1, size / 4096);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t task = 0; task < t.tables * pieces; ++task) {
    const int64_t piece = task % pieces;
    update<DIM>(t, turn, task / pieces, piece * size / pieces, (piece + 1) * size / pieces);
  }
}

template <int64_t DIM>
Step step_of(Tables t, bool training) {
  std::mt19937_64 generator(1);
  for (int64_t table = 0; table < t.tables; ++table) t.weights.push_back(huge<float>(t.rows * DIM));
  t.ids.resize(kBatches * t.tables * t.size());
  for (auto& id : t.ids) id = static_cast<int32_t>(generator() % t.rows);
  t.out = huge<float>(t.batch * t.tables * DIM);
  int64_t turn = 0;
  if (!training) return [t, turn](int threads) mutable { look_up<DIM>(t, turn = (turn + 1) % kBatches, threads); };
  t.gradients = huge<float>(t.batch * t.tables * DIM);
  for (int64_t table = 0; table < t.tables; ++table) t.state.push_back(huge<float>(t.rows));
  for (int64_t table = 0; table < kBatches * t.tables; ++table) {
    const int32_t* ids = &t.ids[table * t.size()];
    std::vector<int32_t> order(t.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return ids[a] < ids[b]; });
    t.order.push_back(std::move(order));
  }
  return [t, turn](int threads) mutable { train<DIM>(t, turn = (turn + 1) % kBatches, threads); };
}

// Ids as the stream of benchmarks/collision.py draws them: ranks log-uniform, up to four times the rows.
Step probe_of(int64_t rows, int64_t batch) {
  int64_t slots = 1;
  while (slots < 2 * rows) slots *= 2;
  struct Slot {
    int64_t key, row;
  };
  Slot* map = huge<Slot>(slots);
  int64_t* counts = huge<int64_t>(rows + 1);
  const auto scrambled = [](int64_t rank) { return rank * 2654435761 % (int64_t{1} << 61); };
  const auto slot_of = [slots](int64_t key) {
    return static_cast<int64_t>(static_cast<uint64_t>(key) * 0x9E3779B97F4A7C15u >> 20) & (slots - 1);
  };
  for (int64_t row = 1; row <= rows; ++row) {
    const int64_t key = scrambled(row);
    int64_t slot = slot_of(key);
    while (map[slot].key != 0) slot = (slot + 1) & (slots - 1);
    map[slot] = {key, row};
  }
  std::mt19937_64 generator(1);
  std::vector<int64_t> ids(batch), found(batch);
  for (auto& id : ids) {
    const double uniform = static_cast<double>(generator() >> 11) / static_cast<double>(int64_t{1} << 53);
    id = scrambled(static_cast<int64_t>(std::pow(4.0 * static_cast<double>(rows), uniform)));
  }
  return [=](int) mutable {  // counting is one thread's
    for (int64_t i = 0; i < batch; ++i) {
      __builtin_prefetch(&map[slot_of(ids[std::min(i + 16, batch - 1)])]);
      int64_t slot = slot_of(ids[i]);
      while (map[slot].key != ids[i] && map[slot].key != 0) slot = (slot + 1) & (slots - 1);
      ++counts[found[i] = map[slot].row];  // row 0: not there
    }
  };
}

volatile uint64_t sink;  // so that what was read counts as used

void memory() {
  char *from = huge<char>(kLarge), *to = huge<char>(kLarge);
  std::printf("ready\n");
  std::fflush(stdout);
  for (int threads; std::scanf("%d", &threads) == 1;) {
    const auto copy = milliseconds(
        [&](int n) {
#pragma omp parallel for num_threads(n)
          for (int part = 0; part < n; ++part)
            std::memcpy(to + part * (kLarge / n), from + part * (kLarge / n), kLarge / n);
        },
        threads);
    const auto read = milliseconds(
        [&](int n) {
          const uint64_t* words = reinterpret_cast<const uint64_t*>(from);
          uint64_t sum = 0;
#pragma omp parallel for num_threads(n) reduction(+ : sum)
          for (size_t i = 0; i < kLarge / 8; ++i) sum += words[i];
          sink = sum;
        },
        threads);
    std::printf("{\"copy\": %.4g, \"read\": %.4g}\n", 2e-6 * kLarge / median(copy), 1e-6 * kLarge / median(read));
    std::fflush(stdout);
  }
}

[[noreturn]] void disturb(bool streaming) {
  char *from = huge<char>(kLarge), *to = huge<char>(kLarge);
  std::printf("ready\n");
  std::fflush(stdout);
  for (;;) {
    if (streaming) std::memcpy(to, from, kLarge);
    sink = sink + 1;
  }
}

void answer(const Step& step) {
  std::printf("ready\n");
  std::fflush(stdout);
  for (int threads; std::scanf("%d", &threads) == 1;) {
    std::printf("{\"wall\": %.6g}\n", median(milliseconds(step, threads)));
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  std::vector<int64_t> numbers;
  for (int i = 2; i < argc; ++i) numbers.push_back(std::atoll(argv[i]));
  if (mode == "memory") {
    memory();
  } else if (mode == "spin" || mode == "stream") {
    disturb(mode == "stream");
  } else if ((mode == "look-up" || mode == "training") && numbers.size() == 5 && numbers[3] % kPiece == 0) {
    const Tables tables{numbers[0], numbers[1], numbers[3], numbers[4], {}, {}, {}, nullptr, nullptr, {}};
    if (numbers[2] == 16) answer(step_of<16>(tables, mode == "training"));
    if (numbers[2] == 64) answer(step_of<64>(tables, mode == "training"));
    if (numbers[2] == 128) answer(step_of<128>(tables, mode == "training"));
  } else if (mode == "probe" && numbers.size() == 2) {
    answer(probe_of(numbers[0], numbers[1]));
  } else {
    return 2;
  }
}
