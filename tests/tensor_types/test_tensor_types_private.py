"""PyTorch's private names exist, and do what the packed tensors need of them."""

import torch

from torchrec.tensor_types import UInt4Tensor, _private


def test_a_wrapped_subclass_has_shape_and_device_without_memory():
    wrapped = _private.make_wrapper_subclass(UInt4Tensor, (2, 4), dtype=torch.uint8, device="cpu")
    assert type(wrapped) is UInt4Tensor
    assert wrapped.shape == (2, 4)
    assert wrapped.device.type == "cpu"


def test_a_subclass_meets_these_operators():
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    packed = UInt4Tensor(torch.tensor([[0x21, 0x43]], dtype=torch.uint8))
    with Watch():
        copied = packed.to("cpu", copy=True)
    assert seen[0] is _private.TO_COPY
    assert copied.tolist() == [[1, 2, 3, 4]]
    for operator in (_private.PIN_MEMORY, _private.UNSAFE_VIEW):
        assert isinstance(operator, torch._ops.OpOverload)
