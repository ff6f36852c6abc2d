// The family of slot maps: addresses in, the number of slots that changed hands out; -1: the numbers do not fit.
#include <nanobind/nanobind.h>

#include "address.h"
#include "hash_collision/hash_collision.h"

namespace nb = nanobind;

namespace rowwise {

void bind_hash_collision(nb::module_& m) {
  m.def("hash_slots_find", [](int64_t identities, int64_t size, int64_t bounds, int64_t here, int64_t first,
                              int64_t total, int64_t span, bool local, int64_t reserved, int64_t max_probe,
                              bool fallback, int64_t ids, int64_t count, int64_t slots, int64_t totals, int threads) {
    nb::gil_scoped_release release;
    const Probing probing = {at<const int64_t>(bounds), here, first, total, span, reserved, max_probe, local, fallback};
    if (!probing_fits(probing, size)) return -1;
    find_slots({at<int64_t>(identities), nullptr}, probing, at<const int64_t>(ids), count, at<int64_t>(slots),
               at<int64_t>(totals), threads);
    return 0;
  });
  m.def("hash_slots_assign", [](int64_t identities, int64_t size, int64_t bounds, int64_t here, int64_t first,
                                int64_t total, int64_t span, bool local, int64_t reserved, int64_t max_probe,
                                bool fallback, int64_t metadata, int64_t ids, int64_t count, int64_t scores,
                                int64_t admitted, int32_t threshold, bool oldest, int64_t slots, int64_t evicted,
                                int64_t totals, int threads) -> int64_t {
    nb::gil_scoped_release release;
    const Probing probing = {at<const int64_t>(bounds), here, first, total, span, reserved, max_probe, local, fallback};
    if (!probing_fits(probing, size)) return -1;
    return assign_slots({at<int64_t>(identities), at<int32_t>(metadata)}, probing,
                        {at<const int64_t>(ids), count, at<const int32_t>(scores), at<const uint8_t>(admitted), threshold,
                         oldest},
                        at<int64_t>(slots), at<int64_t>(evicted), at<int64_t>(totals), threads);
  });
}

}  // namespace rowwise
