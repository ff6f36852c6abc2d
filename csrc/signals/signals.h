// Numbers in memory that processes share, by which one says that something is there and another waits for it.
#pragma once

#include <cstdint>

namespace rowwise {

// Whether this system lets a process sleep until another wakes it by an address that both share.
bool can_signal();

// A number that another process may write, and what it has to reach.
struct Signal {
  int64_t* word;
  int64_t value;
};

// What a process is woken by: how often it was rung for, and whether it sleeps.
struct Bell {
  uint32_t rings;
  uint32_t sleeps;
};

// Writes the numbers, so that who reads them sees all that was written before, and wakes who sleeps by one of the bells.
void post(const Signal* signals, int64_t count, Bell* const* bells, int64_t num_bells);

// Waits until each number is at least its value, and returns whether it is. Looks again and again for `spin_us`, then
// sleeps by the bell, until `timeout_us` are over.
bool wait(const Signal* signals, int64_t count, Bell* bell, int64_t spin_us, int64_t timeout_us);

}  // namespace rowwise
