#include "scratch.h"

#include <cstdlib>
#include <mutex>
#include <utility>
#include <vector>

#include "memory.h"

namespace rowwise {
namespace {

constexpr size_t kKept = size_t{256} << 20;  // more than this goes back to the system at once

std::mutex mutex;
std::vector<std::pair<size_t, char*>>& kept() {  // never destroyed: threads may outlive static destruction
  static auto* blocks = new std::vector<std::pair<size_t, char*>>();
  return *blocks;
}
size_t kept_bytes = 0;

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
  data_ = allocate_pages(bytes_);
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
