// The hashing family: addresses in, the first bad string (or -1) out.
#include <nanobind/nanobind.h>

#include "hashing/hashing.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

template <class T>
T* at(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

}  // namespace

void bind_hashing(nb::module_& m) {
  m.def("hash_strings", [](int64_t bytes, int64_t num_bytes, int64_t offsets, bool wide, int64_t count, int64_t seed,
                           int64_t hashes) {
    nb::gil_scoped_release release;
    return hash_strings({at<const unsigned char>(bytes), num_bytes, at<const void>(offsets), wide, count},
                        static_cast<uint64_t>(seed), at<uint64_t>(hashes));
  });
}

}  // namespace rowwise
