// Working memory for the sanitizer driver: of exactly the size asked for and given back at once, so that a step beyond
// it is seen, and filled with NaN, so that reading what nobody wrote shows in the numbers.
#include "scratch.h"

#include <cstring>
#include <new>

namespace rowwise {

// The sanitizer ends the process where an `operator new` that throws finds no memory.
Scratch::Scratch(size_t bytes)
    : data_(static_cast<char*>(::operator new(bytes, std::align_val_t{64}, std::nothrow))), bytes_(bytes) {
  if (data_ == nullptr) throw std::bad_alloc();
  std::memset(data_, 0xff, bytes_);
}

Scratch::~Scratch() { ::operator delete(data_, std::align_val_t{64}); }

}  // namespace rowwise
