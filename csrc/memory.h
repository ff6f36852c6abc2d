// Memory in huge pages: random rows of a large table then seldom miss the address cache.
#pragma once

#include <cstddef>

namespace rowwise {

constexpr size_t kHugePage = size_t{1} << 21;

// Asks for huge pages behind [data, data + bytes), as far as they are whole; its owner is another. Call before the memory is
// first written. Only advice: where there are none, nothing happens.
void advise_huge_pages(void* data, size_t bytes);

// Memory of any content, for std::free. From a huge page on it begins with one, and also ends with one unless that would
// take a sixteenth more than `bytes`. Throws std::bad_alloc.
char* allocate_pages(size_t bytes);

}  // namespace rowwise
