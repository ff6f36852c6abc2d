#include "pieces.h"

#ifdef _OPENMP
#include <omp.h>

#include <atomic>
#include <chrono>
#endif

namespace rowwise {

#ifdef _OPENMP
namespace {

// All threads of a team meet at its end. One whose core another process has comes when the system lets it, milliseconds
// later and maybe to find nothing left to do: then sharing was a loss. So after a wait for such a thread nothing is shared
// for sixteen times as long, and waiting takes a small part of the time on a busy machine, and none on a quiet one.
constexpr int64_t kLate = 1000000, kAlone = 16;  // ns; times
std::atomic<int64_t> alone_until{0};

int64_t nanoseconds() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

int all_threads() { return omp_get_max_threads(); }

void run_pieces(int threads, int64_t count, void (*piece)(const void*, int64_t, int), const void* body) {
  if (threads <= 1 || count <= 1 || nanoseconds() < alone_until.load(std::memory_order_relaxed)) {
    for (int64_t i = 0; i < count; ++i) piece(body, i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  std::atomic<bool> late{false};
  int64_t done = 0;  // when the first thread, this one, had nothing left to do
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    int64_t i = next++;
    if (i >= count) late = true;
    for (; i < count; i = next++) piece(body, i, thread);
    if (thread == 0) done = nanoseconds();
  }
  if (!late) return;
  const int64_t now = nanoseconds();
  if (now - done > kLate) alone_until.store(now + kAlone * (now - done), std::memory_order_relaxed);
}
#else
int all_threads() { return 1; }

void run_pieces(int, int64_t count, void (*piece)(const void*, int64_t, int), const void* body) {
  for (int64_t i = 0; i < count; ++i) piece(body, i, 0);
}
#endif

}  // namespace rowwise
