// Tensors as Python hands them over, for the bindings, read without PyTorch's headers: through DLPack's exchange API
// (https://dmlc.github.io/dlpack/latest/c_api.html), which PyTorch's type of tensors carries from 2.10 on. To read one
// takes 40 ns, as long as to ask it a single question from Python. What DLPack does not tell (whether a gradient is asked,
// whether somebody is tracing, lazy negatives) is asked in Python before.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <string>

#include "address.h"

namespace rowwise {

// DLTensor, field by field.
struct TensorView {
  void* data;
  int32_t device, device_number;
  int32_t dims;
  uint8_t kind, bits;
  uint16_t lanes;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;

  bool is_integers() const { return kind == 0 && (bits == 64 || bits == 32); }

  int64_t count() const {
    int64_t n = 1;
    for (int32_t i = 0; i < dims; ++i) n *= shape[i];
    return n;
  }

  bool is_contiguous() const {
    int64_t step = 1;
    for (int32_t i = dims; i-- > 0; step *= shape[i]) {
      if (shape[i] != 1 && strides[i] != step) return count() == 0;
    }
    return true;
  }
};

// DLPackExchangeAPI, as far as it is used.
struct ExchangeApi {
  uint32_t major, minor;
  void *previous, *allocate, *view_owning, *to_object;
  int (*view)(void* object, TensorView* view);
};

// What the tensors of this process are: set once, when the package is imported.
struct TensorTypes {
  const ExchangeApi* api = nullptr;
  PyTypeObject *tensor = nullptr, *parameter = nullptr;
};
inline TensorTypes tensor_types;

// Whether an object is a tensor, and of no subclass but Parameter: none has any say in what its numbers are.
inline bool is_plain_type(nanobind::handle object) {
  const PyTypeObject* type = Py_TYPE(object.ptr());
  return type == tensor_types.tensor || type == tensor_types.parameter;
}

// Reads a tensor in the CPU's memory; false for all else.
inline bool read_tensor(nanobind::handle object, TensorView& view) {
  if (!is_plain_type(object) && !PyObject_TypeCheck(object.ptr(), tensor_types.tensor)) return false;
  if (tensor_types.api->view(object.ptr(), &view) != 0) {
    PyErr_Clear();
    return false;
  }
  return view.device == 1 && view.byte_offset == 0 && (view.data != nullptr || view.count() == 0);
}

inline std::string dtype_of(nanobind::handle tensor) { return nanobind::repr(tensor.attr("dtype")).c_str(); }

// Says why a tensor cannot be read; `what` names it.
[[noreturn]] inline void refuse_unreadable(nanobind::handle tensor, const std::string& what) {
  const std::string device = nanobind::str(nanobind::object(tensor.attr("device"))).c_str();
  refuse(what + " should have memory, on the CPU. Received a tensor " +
         (device == "cpu" ? "whose storage is empty." : "on " + device + "."));
}

// Reads a contiguous row of int32 or int64; false for all else.
inline bool read_integers(nanobind::handle object, TensorView& view) {
  return read_tensor(object, view) && view.is_integers() && view.dims == 1 && view.is_contiguous();
}

// The same, or an error.
inline TensorView integers_of(nanobind::handle tensor, const char* name) {
  TensorView view;
  if (read_integers(tensor, view)) return view;
  const std::string what = std::string("`") + name + "`", dtype = dtype_of(tensor);
  if (dtype != "torch.int64" && dtype != "torch.int32") {
    throw nanobind::type_error((what + " should be int32 or int64. Received " + dtype + ".").c_str());
  }
  const int64_t dims = nanobind::cast<int64_t>(tensor.attr("dim")());
  REQUIRE(dims == 1, what + " should have one dimension. Received " + std::to_string(dims) + ".");
  refuse_unreadable(tensor, what);
}

}  // namespace rowwise
