// The hashing family: addresses in, the first bad string (or -1) out.
#include <nanobind/nanobind.h>

#include "address.h"
#include "hashing/hashing.h"

namespace nb = nanobind;

namespace rowwise {

void bind_hashing(nb::module_& m) {
  m.def("hash_strings", [](int64_t bytes, int64_t num_bytes, int64_t offsets, bool wide, int64_t count, int64_t seed,
                           int64_t hashes) {
    nb::gil_scoped_release release;
    REQUIRE(count >= 0, "`offsets` should be one more than the strings. Received none.");
    return hash_strings({at<const unsigned char>(bytes, num_bytes, "data"), num_bytes,
                         at<const void>(offsets, count + 1, "offsets"), wide, count},
                        static_cast<uint64_t>(seed), at<uint64_t>(hashes));
  });
  m.def("hash_ids", [](int64_t ids, int64_t count, int64_t span, int64_t hashes) {
    nb::gil_scoped_release release;
    REQUIRE(span > 0, "`span` should be at least 1. Received " + std::to_string(span) + ".");
    hash_ids(at<const int64_t>(ids, count, "ids"), count, span, at<int64_t>(hashes));
  });
}

}  // namespace rowwise
