"""Finds out that a gradient scaler steps, when a backward pass has updated parameters with what it had scaled.

A scaler multiplies the loss, divides the gradients that it finds in the parameters of an optimizer, and then steps, or
not. What the backward pass itself has updated it never sees, and the pass cannot know that its loss was multiplied. So
the step is where both meet: its callers tell that it is a scaler's, and the owners of parameters when they did it.
"""

from __future__ import annotations

from inspect import currentframe
from types import FrameType
from weakref import WeakKeyDictionary

import torch

from torchrec.optim.backward_pass import backward_pass_number
from torchrec.optim.owners import Owner, all_owners, owner_of

_STEP = torch.amp.GradScaler.step.__code__


class ScaledSteps:
    """Counts the steps of optimizers, and refuses those of a scaler for updates in the backward pass.

    Which pass a step is for, nobody says. It is no earlier than the step before, as a step that was skipped is
    none. Of what was updated since, that in the newest pass belongs to this step. That in an earlier one may belong to
    another model, which needs no scaler: it is refused the second time, unless there was an optimizer
    in between that steps without a scaler.

    Attributes:
        taken: how many steps there were: what owners of parameters take for the time of an update.
    """

    def __init__(self) -> None:
        self.taken = 0
        self._unscaled = 0
        self._suspected: WeakKeyDictionary[Owner, int] = WeakKeyDictionary()

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Count a step that is about to be taken.

        Raises:
            RuntimeError: if it is a scaler's, and parameters were updated already: naming them.
        """
        if backward_pass_number() >= 0 or not _has_gradients(optimizer):
            return
        scaler = _scaler_above(currentframe())
        self.taken += 1
        if scaler is None:
            self._unscaled += 1
            return
        updated = self._updated_for_this_step()
        if updated:
            names = ", ".join(owner.description for owner in updated)
            raise RuntimeError(
                f"{names} should not be updated in the backward pass where a GradScaler "
                f"steps: the gradients were scaled by {scaler.get_scale()}, and nobody has unscaled "
                "them. Leave `lr` of a table out: it is then updated by `scaler.step()`, or not if "
                "that is skipped."
            )

    def _updated_for_this_step(self) -> list[Owner]:
        """Return whose parameters were updated by the pass that the step is for which was just counted."""
        since = {
            owner: owner.updated.backward_pass
            for owner in all_owners()
            if owner.updated is not None and owner.updated.step == self.taken - 1
        }
        if not since:
            return []
        newest = _newest_pass()
        again = [owner for owner in since if self._suspected.get(owner) == self._unscaled]
        self._suspected.update(dict.fromkeys(since, self._unscaled))
        return [owner for owner in since if since[owner] == newest or owner in again]


scaled_steps = ScaledSteps()


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether some parameter is left to the optimizer: not so where it only shows what is updated otherwise."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            owner = owner_of(param)
            if owner is None or not owner.in_backward:
                return True
    return False


def _scaler_above(frame: FrameType | None) -> torch.amp.GradScaler | None:
    """Return the scaler that has called for this step, if one has that scales."""
    while frame is not None:  # however many schedulers and programs have put a step around the step
        if frame.f_code is _STEP:
            scaler: torch.amp.GradScaler = frame.f_locals["self"]
            return scaler if scaler.is_enabled() else None
        frame = frame.f_back
    return None


def _newest_pass() -> int:
    """Return the number of the last backward pass, as they are numbered one after the other: of one more."""
    numbers: list[int] = []
    with torch.enable_grad():
        probe = torch.zeros((), device="cpu", requires_grad=True)
        probe.register_hook(lambda _: numbers.append(backward_pass_number()))
        probe.backward()
    return numbers[0] - 1
