#include "signals/signals.h"

#include <thread>

#include "check.h"

namespace rowwise {

// Two threads answer each other: a number that one misses stops both. What is written before is seen after.
void test_signals() {
  if (!can_signal()) return;
  for (const int64_t spin : {0, 20}) {
    int64_t here = 0, there = 0, payload = 0;
    Bell mine{}, other{};
    constexpr int64_t kRounds = 500, kLong = 10000000;
    std::thread thread([&] {
      for (int64_t i = 1; i <= kRounds; ++i) {
        const Signal asked{&here, i}, answered{&there, i};
        CHECK(wait(&asked, 1, &other, spin, kLong));
        payload *= 2;
        Bell* const bell = &mine;
        post(&answered, 1, &bell, 1);
      }
    });
    for (int64_t i = 1; i <= kRounds; ++i) {
      payload = i;
      const Signal asked{&here, i}, answered{&there, i};
      Bell* const bell = &other;
      post(&asked, 1, &bell, 1);
      CHECK(wait(&answered, 1, &mine, spin, kLong));
      CHECK(payload == 2 * i);
    }
    thread.join();
    const Signal never{&here, kRounds + 1};
    CHECK(!wait(&never, 1, &mine, spin, 100));
    CHECK(wait(nullptr, 0, &mine, spin, 0));
  }
}

}  // namespace rowwise
