// The extension module torchrec.ops._native: hands pointers and sizes to the kernels. It knows nothing of PyTorch but
// that its tensors speak DLPack, so one build serves every PyTorch version. Pointers are checked for nothing here: the callers in torchrec/ops own
// that, and are its only users.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdlib>
#include <string>

#include "cpu.h"
#include "memory.h"
#include "tensor.h"

namespace nb = nanobind;

namespace rowwise {
void bind_collision(nb::module_& m);       // csrc/collision/bindings.cpp
void bind_embedding(nb::module_& m);       // csrc/embedding/bindings.cpp
void bind_hash_collision(nb::module_& m);  // csrc/hash_collision/bindings.cpp
void bind_hashing(nb::module_& m);         // csrc/hashing/bindings.cpp
void bind_interaction(nb::module_& m);     // csrc/interaction/bindings.cpp
void bind_jagged(nb::module_& m);          // csrc/jagged/bindings.cpp
void bind_linear(nb::module_& m);          // csrc/linear/bindings.cpp
void bind_metrics(nb::module_& m);         // csrc/metrics/bindings.cpp
void bind_permute(nb::module_& m);         // csrc/permute/bindings.cpp
void bind_quant(nb::module_& m);        // csrc/quant/bindings.cpp
void bind_routing(nb::module_& m);         // csrc/routing/bindings.cpp
void bind_signals(nb::module_& m);         // csrc/signals/bindings.cpp
}  // namespace rowwise

NB_MODULE(_native, m) {
  rowwise::bind_collision(m);
  rowwise::bind_embedding(m);
  rowwise::bind_hash_collision(m);
  rowwise::bind_hashing(m);
  rowwise::bind_interaction(m);
  rowwise::bind_jagged(m);
  rowwise::bind_linear(m);
  rowwise::bind_metrics(m);
  rowwise::bind_permute(m);
  rowwise::bind_quant(m);
  rowwise::bind_routing(m);
  rowwise::bind_signals(m);
  m.def(
      "read_tensors",
      [](nb::object tensor, nb::object parameter) {
        const nb::object capsule = tensor.attr("__dlpack_c_exchange_api__");
        const auto* api = static_cast<const rowwise::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (api == nullptr) throw nb::python_error();
        if (api->major != 1 || api->view == nullptr) {
          throw nb::import_error("PyTorch should have DLPack's exchange API, version 1. Received another version.");
        }
        rowwise::tensor_types = {api, reinterpret_cast<PyTypeObject*>(tensor.release().ptr()),
                                 reinterpret_cast<PyTypeObject*>(parameter.release().ptr())};
      },
      "Say what the types of tensors are: the first thing to do.");
  m.def(
      "are_held",
      [](nb::list objects, nb::list dicts, nb::handle key) {
        const size_t count = nb::len(objects);
        if (nb::len(dicts) != count) return false;
        for (size_t i = 0; i < count; ++i) {
          PyObject* const dict = PyList_GET_ITEM(dicts.ptr(), static_cast<Py_ssize_t>(i));
          if (!PyDict_Check(dict)) return false;
          if (PyDict_GetItem(dict, key.ptr()) != PyList_GET_ITEM(objects.ptr(), static_cast<Py_ssize_t>(i))) return false;
        }
        return true;
      },
      "See torchrec.ops.are_held.");
  m.def(
      "held",
      [](nb::list dicts, nb::handle key) {
        const size_t count = nb::len(dicts);
        nb::object found = nb::steal(PyList_New(static_cast<Py_ssize_t>(count)));
        for (size_t i = 0; i < count; ++i) {
          PyObject* const dict = PyList_GET_ITEM(dicts.ptr(), static_cast<Py_ssize_t>(i));
          PyObject* const object = PyDict_Check(dict) ? PyDict_GetItem(dict, key.ptr()) : nullptr;
          if (object == nullptr) throw nb::key_error(nb::repr(key).c_str());
          PyList_SET_ITEM(found.ptr(), static_cast<Py_ssize_t>(i), nb::handle(object).inc_ref().ptr());
        }
        return found;
      },
      "See torchrec.ops.held.");
  m.def(
      "are_plain",
      [](nb::sequence tensors) {
        const nb::object fast = nb::steal(PySequence_Fast(tensors.ptr(), "a sequence"));
        const Py_ssize_t count = PySequence_Fast_GET_SIZE(fast.ptr());
        PyObject** const items = PySequence_Fast_ITEMS(fast.ptr());
        for (Py_ssize_t i = 0; i < count; ++i) {
          if (!rowwise::is_plain_type(items[i])) return false;
        }
        return true;
      },
      "See torchrec.ops._library.are_plain.");
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
  m.def(
      "new_pages",
      [](size_t bytes) {
        REQUIRE(bytes < size_t{1} << 47, "A table should fit the memory. Received a size of " + std::to_string(bytes) + " bytes.");
        char* const data = rowwise::allocate_pages(bytes);
        const nb::capsule owner(data, [](void* p) noexcept { std::free(p); });
        return nb::ndarray<nb::pytorch, uint8_t, nb::ndim<1>>(data, {bytes}, owner);
      },
      "Return memory of any content, in huge pages where the system has them.");
}
