#include "signals/signals.h"

#include <chrono>
#include <climits>
#include <ctime>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rowwise {
namespace {

using Clock = std::chrono::steady_clock;

bool reached(const Signal* signals, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (__atomic_load_n(signals[i].word, __ATOMIC_ACQUIRE) < signals[i].value) return false;
  }
  return true;
}

void pause_a_little() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

#ifdef __linux__
void wake(Bell* bell) { syscall(SYS_futex, &bell->rings, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }

// Returns at once if the bell was rung since `rings` was read; may return early.
void sleep_by(Bell* bell, uint32_t rings, int64_t us) {
  timespec time{};
  time.tv_sec = static_cast<time_t>(us / 1000000);
  time.tv_nsec = static_cast<long>(us % 1000000 * 1000);
  syscall(SYS_futex, &bell->rings, FUTEX_WAIT, rings, &time, nullptr, 0);
}
#else
void wake(Bell*) {}
void sleep_by(Bell*, uint32_t, int64_t) {}
#endif

}  // namespace

bool can_signal() {
#ifdef __linux__
  return true;
#else
  return false;
#endif
}

void post(const Signal* signals, int64_t count, Bell* const* bells, int64_t num_bells) {
  for (int64_t i = 0; i < count; ++i) __atomic_store_n(signals[i].word, signals[i].value, __ATOMIC_RELEASE);
  // In one order with `wait`: either it sees the numbers, or this sees that it sleeps.
  for (int64_t i = 0; i < num_bells; ++i) {
    __atomic_fetch_add(&bells[i]->rings, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&bells[i]->sleeps, __ATOMIC_SEQ_CST) != 0) wake(bells[i]);
  }
}

bool wait(const Signal* signals, int64_t count, Bell* bell, int64_t spin_us, int64_t timeout_us) {
  if (reached(signals, count)) return true;
  const auto begin = Clock::now();
  auto waited = [begin] { return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count(); };
  while (waited() < spin_us) {
    for (int i = 0; i < 16; ++i) {
      if (reached(signals, count)) return true;
      pause_a_little();
    }
  }
  bool found = false;
  for (int64_t left = timeout_us - waited(); !found && left > 0; left = timeout_us - waited()) {
    const uint32_t rings = __atomic_load_n(&bell->rings, __ATOMIC_SEQ_CST);
    __atomic_store_n(&bell->sleeps, 1, __ATOMIC_SEQ_CST);
    found = reached(signals, count);
    if (!found) sleep_by(bell, rings, left);
  }
  __atomic_store_n(&bell->sleeps, 0, __ATOMIC_SEQ_CST);
  return found || reached(signals, count);
}

}  // namespace rowwise
