// Runs every kernel family over odd shapes, empty inputs, duplicates and extremes, with one to three threads and on
// every instruction set of this processor, against straightforward loops. Built with AddressSanitizer and
// UndefinedBehaviorSanitizer: `make sanitize`.
#include "check.h"

int main() {
  rowwise::test_jagged();
  rowwise::test_permute();
  rowwise::test_routing();
  rowwise::test_signals();
  rowwise::test_interaction();
  rowwise::test_linear();
  rowwise::test_metrics();
  rowwise::test_hashing();
  rowwise::test_quant();
  rowwise::test_embedding();
  rowwise::test_collision();
  rowwise::test_hash_collision();
  std::printf("sanitizers: no fault found up to %s\n", rowwise::isa_name());
  return 0;
}
