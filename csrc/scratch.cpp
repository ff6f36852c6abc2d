#include "scratch.h"

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace rowwise {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;
constexpr size_t kKept = size_t{256} << 20;  // more than this goes back to the system at once

std::mutex mutex;
std::vector<std::pair<size_t, char*>>& kept() {  // never destroyed: threads may outlive static destruction
  static auto* blocks = new std::vector<std::pair<size_t, char*>>();
  return *blocks;
}
size_t kept_bytes = 0;

char* allocate(size_t bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : 64;
  void* data = std::aligned_alloc(alignment, bytes);
  if (data == nullptr) throw std::bad_alloc();
#ifdef __linux__
  if (bytes >= kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return static_cast<char*>(data);
}

size_t rounded(size_t bytes) {
  size_t size = 4096;
  while (size < bytes) size *= 2;
  return size;
}

}  // namespace

Scratch::Scratch(size_t bytes) : data_(nullptr), bytes_(rounded(bytes)) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    auto& blocks = kept();
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (blocks[i].first == bytes_) {
        data_ = blocks[i].second;
        kept_bytes -= bytes_;
        blocks[i] = blocks.back();
        blocks.pop_back();
        return;
      }
    }
  }
  data_ = allocate(bytes_);
}

Scratch::~Scratch() {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (kept_bytes + bytes_ <= kKept) {
      kept().emplace_back(bytes_, data_);
      kept_bytes += bytes_;
      return;
    }
  }
  std::free(data_);
}

}  // namespace rowwise
