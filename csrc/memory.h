// Advice to the operating system about memory that others own.
#pragma once

#include <cstddef>

namespace rowwise {

// Asks for huge pages behind [data, data + bytes): random rows of a large table then seldom miss the address cache.
// Call before the memory is first written. Only advice: where there are none, nothing happens.
void advise_huge_pages(void* data, size_t bytes);

}  // namespace rowwise
