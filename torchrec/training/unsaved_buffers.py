"""Buffers that ``state_dict`` leaves out, such as counts of ids: a run that is taken up needs them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from torchrec.training._private import unsaved_buffers_of


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that ``state_dict`` leaves out, such as counts of ids."""
    return {
        f"{path}.{name}": buffer
        for path, module in model.named_modules()
        for name, buffer in unsaved_buffers_of(module)
    }


def load_unsaved_buffers(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Restore the buffers that ``state_dict`` leaves out; some grow while training."""
    for name, buffer in unsaved_buffers(model).items():
        if buffer.shape == saved[name].shape:
            buffer.copy_(saved[name])
        else:
            path, _, last = name.rpartition(".")
            module = model.get_submodule(path)
            module.register_buffer(last, saved[name].to(buffer.device), persistent=False)
