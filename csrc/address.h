// Memory as Python hands it over, for the bindings: an address, and how much is there. Kernels trust both, so what they
// assume of the numbers that come with an address is required here, beside it.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace rowwise {

using Ints = std::vector<int64_t>;

// ValueError and IndexError in Python.
[[noreturn]] inline void refuse(const std::string& message) { throw std::invalid_argument(message); }
[[noreturn]] inline void refuse_position(const std::string& message) { throw std::out_of_range(message); }

// A macro, so that the message is put together only where it is needed: that takes longer than a small call.
#define REQUIRE(holds, message)             \
  do {                                      \
    if (!(holds)) rowwise::refuse(message); \
  } while (false)

template <class T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

// The same for a tensor of `count` elements, which may yet have no memory: zeros as autograd makes them, or a tensor whose
// storage was freed.
template <class T>
T* at(int64_t address, int64_t count, const char* name) {
  REQUIRE(address != 0 || count == 0, std::string("`") + name + "` should have memory. Received a tensor whose storage is empty.");
  return at<T>(address);
}

// Whether `sizes` are not negative and sum to `total`.
inline bool sizes_fit(const Ints& sizes, int64_t total) {
  int64_t left = total;
  for (const int64_t size : sizes) {
    if (size < 0 || size > left) return false;
    left -= size;
  }
  return left == 0;
}

}  // namespace rowwise
