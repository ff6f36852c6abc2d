#include "memory.h"

#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace rowwise {

void advise_huge_pages(void* data, size_t bytes) {
#ifdef __linux__
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) & ~(kHugePage - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

char* allocate_pages(size_t bytes) {
  const bool large = bytes >= kHugePage;
  const size_t page = large ? kHugePage : 64, room = (bytes + page - 1) / page * page;
  void* data = std::aligned_alloc(page, room);
  if (data == nullptr) throw std::bad_alloc();
  if (large) advise_huge_pages(data, room - bytes < bytes / 16 ? room : bytes);
  return static_cast<char*>(data);
}

}  // namespace rowwise
