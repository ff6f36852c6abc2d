// The extension module torchrec.ops._native: hands pointers and sizes to the kernels. It knows nothing of PyTorch,
// so one build serves every PyTorch version. Pointers are checked for nothing here: the callers in torchrec/ops own
// that, and are its only users.
#include <nanobind/nanobind.h>

#include "cpu.h"
#include "memory.h"

namespace nb = nanobind;

namespace rowwise {
void bind_collision(nb::module_& m);       // csrc/collision/bindings.cpp
void bind_embedding(nb::module_& m);       // csrc/embedding/bindings.cpp
void bind_hash_collision(nb::module_& m);  // csrc/hash_collision/bindings.cpp
void bind_hashing(nb::module_& m);         // csrc/hashing/bindings.cpp
void bind_interaction(nb::module_& m);     // csrc/interaction/bindings.cpp
void bind_jagged(nb::module_& m);          // csrc/jagged/bindings.cpp
void bind_permute(nb::module_& m);         // csrc/permute/bindings.cpp
}  // namespace rowwise

NB_MODULE(_native, m) {
  rowwise::bind_collision(m);
  rowwise::bind_embedding(m);
  rowwise::bind_hash_collision(m);
  rowwise::bind_hashing(m);
  rowwise::bind_interaction(m);
  rowwise::bind_jagged(m);
  rowwise::bind_permute(m);
  m.def("isa", &rowwise::isa_name, "The instruction set in use: baseline, avx2 or avx512.");
  m.def(
      "openmp",
      []() {
#ifdef _OPENMP
        return true;
#else
        return false;
#endif
      },
      "Whether the kernels were built with OpenMP.");
  m.def(
      "advise_huge_pages",
      [](int64_t address, int64_t bytes) {
        rowwise::advise_huge_pages(reinterpret_cast<void*>(static_cast<uintptr_t>(address)), static_cast<size_t>(bytes));
      },
      "Ask for huge pages behind memory that has not been written yet.");
}
