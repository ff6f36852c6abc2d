// Working memory that is kept between calls: fresh pages cost more than the sort that would use them.
#pragma once

#include <cstddef>

namespace rowwise {

// A block of at least `bytes`, 64-byte aligned, of any content; returned when it goes out of scope. Safe from several
// threads. Throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(size_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  char* data() const { return data_; }

 private:
  char* data_;
  size_t bytes_;
};

}  // namespace rowwise
