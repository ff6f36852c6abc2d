// The signals family: addresses in memory that processes share. The Python side has mapped it, and keeps it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <vector>

#include "address.h"
#include "signals/signals.h"

namespace nb = nanobind;

namespace rowwise {
namespace {

std::vector<Signal> signals_of(const Ints& words, const Ints& values) {
  REQUIRE(words.size() == values.size(), "`values` should be one a word. Received others.");
  std::vector<Signal> signals;
  signals.reserve(words.size());
  for (size_t i = 0; i < words.size(); ++i) {
    REQUIRE(words[i] != 0 && words[i] % 8 == 0, "`words` should be addresses of int64. Received others.");
    signals.push_back({at<int64_t>(words[i]), values[i]});
  }
  return signals;
}

Bell* bell_at(int64_t address) {
  REQUIRE(address != 0 && address % 8 == 0, "A bell should have an address. Received another.");
  return at<Bell>(address);
}

}  // namespace

void bind_signals(nb::module_& m) {
  m.def("can_signal", &can_signal);
  m.def("post", [](const Ints& words, const Ints& values, const Ints& bells) {
    const std::vector<Signal> signals = signals_of(words, values);
    std::vector<Bell*> rung;
    for (const int64_t address : bells) rung.push_back(bell_at(address));
    post(signals.data(), static_cast<int64_t>(signals.size()), rung.data(), static_cast<int64_t>(rung.size()));
  });
  m.def("wait", [](const Ints& words, const Ints& values, int64_t bell, int64_t spin_us, int64_t timeout_us) {
    const std::vector<Signal> signals = signals_of(words, values);
    Bell* const sleeping = bell_at(bell);
    nb::gil_scoped_release release;
    return wait(signals.data(), static_cast<int64_t>(signals.size()), sleeping, spin_us, timeout_us);
  });
}

}  // namespace rowwise
