"""A module that makes input of sharded modules of a batch, and runs once for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed.train_pipeline.pipeline_context import TrainPipelineContext
from torchrec.distributed.train_pipeline.types import CallArgs
from torchrec.streamable import Multistreamable

__all__ = ["PipelinedPostproc"]


class PipelinedPostproc(nn.Module):
    """Runs a module once for a batch, however often it is called, and keeps what it has made in the batch's context.

    Its parameters, buffers and modules have the names that they have without it. Pipelines here put none into a model:
    it is for programs that do.

    Args:
        postproc_module: the module.
        fqn: its path in the model.
        args: how its arguments follow from the input of the model.
        context: of the batch.
        default_stream: of accelerators; without effect on a CPU.
        dist_stream: of accelerators; without effect on a CPU.

    Example:
        >>> made = PipelinedPostproc(nn.Flatten(0), "flat", CallArgs([], {}), TrainPipelineContext(), None, None)
        >>> made(torch.ones(2, 1)) is made(torch.ones(2, 1))
        True
    """

    def __init__(
        self,
        postproc_module: nn.Module,
        fqn: str,
        args: CallArgs,
        context: TrainPipelineContext,
        default_stream: torch.Stream | None,
        dist_stream: torch.Stream | None,
    ) -> None:
        super().__init__()
        self._postproc_module, self._fqn, self._args = postproc_module, fqn, args
        self._context = context

    @property
    def postproc_module(self) -> nn.Module:
        """The module."""
        return self._postproc_module

    @property
    def fqn(self) -> str:
        """Its path in the model."""
        return self._fqn

    @property
    def args(self) -> CallArgs:
        """How its arguments follow from the input of the model."""
        return self._args

    def set_context(self, context: TrainPipelineContext) -> None:
        """Go on with another batch.

        Args:
            context: of the batch.
        """
        self._context = context

    def get_context(self) -> TrainPipelineContext:
        """Return the context of the batch."""
        return self._context

    def forward(self, *input: Any, **kwargs: Any) -> Any:
        """Return what the module has made of the batch.

        Args:
            input: of the module, the first time.
            kwargs: of the module, the first time.
        """
        results = self._context.postproc_fwd_results
        if self._fqn not in results:
            results[self._fqn] = self._postproc_module(*input, **kwargs)
        return results[self._fqn]

    @staticmethod
    def recursive_record_stream(res: Any, stream: torch.Stream) -> None:
        """Keep the memory of all tensors in something alive until the work queued on ``stream`` is done.

        Args:
            res: a tensor, something `Multistreamable`, or a dictionary, list or tuple of such.
            stream: of an accelerator.
        """
        if isinstance(res, (Tensor, Multistreamable)):
            res.record_stream(stream)
        elif isinstance(res, Mapping):
            for each in res.values():
                PipelinedPostproc.recursive_record_stream(each, stream)
        elif isinstance(res, (list, tuple)):
            for each in res:
                PipelinedPostproc.recursive_record_stream(each, stream)

    # Names as they are without it.

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules of the module; see `torch.nn.Module.named_modules`."""
        yield from self._postproc_module.named_modules(memo, prefix, remove_duplicate)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of the module; see `torch.nn.Module.named_parameters`."""
        yield from self._postproc_module.named_parameters(prefix, recurse, remove_duplicate)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers of the module; see `torch.nn.Module.named_buffers`."""
        yield from self._postproc_module.named_buffers(prefix, recurse, remove_duplicate)

    def state_dict(  # type: ignore[override]
        self,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict[str, Any]:
        """Return the state of the module; see `torch.nn.Module.state_dict`."""
        found = {} if destination is None else destination
        return self._postproc_module.state_dict(
            destination=found, prefix=prefix, keep_vars=keep_vars
        )

    def load_state_dict(  # type: ignore[override]
        self, state_dict: Mapping[str, Tensor], strict: bool = True
    ) -> Any:
        """Load the state of the module; see `torch.nn.Module.load_state_dict`."""
        return self._postproc_module.load_state_dict(state_dict, strict=strict)
