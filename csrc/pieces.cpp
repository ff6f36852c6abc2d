#include "pieces.h"

#ifdef _OPENMP
#include <omp.h>

#include <atomic>
#include <chrono>
#endif

namespace rowwise {

#ifdef _OPENMP
namespace {

// All threads of a team meet where it begins and where it ends. One whose core another process has comes when the system
// lets it, milliseconds later and maybe to find nothing left to do: then sharing was a loss. So after a wait for such a
// thread nothing is shared for sixteen times as long, and waiting takes a small part of the time on a busy machine, and
// none on a quiet one. A wait of more than a tenth of a second tells of a process that was stopped, not of a busy machine.
constexpr int64_t kLate = 1000000, kLongest = 100000000, kAlone = 16;  // ns; ns; times
std::atomic<int64_t> alone_until{0};

int64_t nanoseconds() {
  return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

int all_threads() { return omp_get_max_threads(); }

void run_pieces(int threads, int64_t count, void (*piece)(const void*, int64_t, int), const void* body) {
  const int64_t called = threads > 1 && count > 1 ? nanoseconds() : 0;
  if (called == 0 || called < alone_until.load(std::memory_order_relaxed)) {
    for (int64_t i = 0; i < count; ++i) piece(body, i, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  std::atomic<bool> in_vain{false};  // a thread came when nothing was left
  int64_t begun = called, done = called;  // by this thread
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    if (thread == 0) begun = nanoseconds();
    int64_t i = next++;
    if (i >= count) in_vain = true;
    for (; i < count; i = next++) piece(body, i, thread);
    if (thread == 0) done = nanoseconds();
  }
  const int64_t now = nanoseconds(), waited = begun - called + (in_vain ? now - done : 0);
  if (waited > kLate)
    alone_until.store(now + kAlone * (waited < kLongest ? waited : kLongest), std::memory_order_relaxed);
}
#else
int all_threads() { return 1; }

void run_pieces(int, int64_t count, void (*piece)(const void*, int64_t, int), const void* body) {
  for (int64_t i = 0; i < count; ++i) piece(body, i, 0);
}
#endif

}  // namespace rowwise
