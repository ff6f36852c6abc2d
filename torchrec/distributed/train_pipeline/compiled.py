"""Pipelines of compiled models."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchrec.distributed.train_pipeline.pipeline_context import TrainPipelineContext
from torchrec.distributed.train_pipeline.plain import In, ModelForward, Out, TrainPipelineBase
from torchrec.distributed.train_pipeline.sparse_dist import TrainPipelineSparseDist

__all__ = ["TorchCompileConfig", "TrainPipelinePT2", "TrainPipelineSparseDistCompAutograd"]


@dataclass
class TorchCompileConfig:
    """How `torch.compile` is called.

    Attributes:
        fullgraph: see `torch.compile`; a model that is sharded over several ranks is never one graph.
        dynamic: see `torch.compile`.
        backend: see `torch.compile`.
        compile_on_iter: number of the step before which the model is compiled, from 0.
    """

    fullgraph: bool = False
    dynamic: bool | None = None
    backend: str = "inductor"
    compile_on_iter: int = 3


class TrainPipelinePT2(TrainPipelineBase[In, Out]):
    """The plain loop, with a model that is compiled on the way.

    Args:
        model: see `TrainPipelineBase`.
        optimizer: see `TrainPipelineBase`.
        device: see `TrainPipelineBase`.
        compile_configs: how, and when. Default: the model is not compiled.
        pre_compile_fn: called with the model before it is.
        post_compile_fn: called with the model when it is.
        input_transformer: makes of a batch what the model is called with.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        compile_configs: TorchCompileConfig | None = None,
        pre_compile_fn: Callable[[nn.Module], None] | None = None,
        post_compile_fn: Callable[[nn.Module], None] | None = None,
        input_transformer: Callable[[In], In] | None = None,
    ) -> None:
        super().__init__(model, optimizer, device)
        self._compile_configs, self._steps = compile_configs, 0
        self._pre_compile_fn, self._post_compile_fn = pre_compile_fn, post_compile_fn
        self._input_transformer = input_transformer

    def _step(self, batch: Any) -> Any:
        config = self._compile_configs
        if config is not None and self._steps == config.compile_on_iter:
            if self._pre_compile_fn is not None:
                self._pre_compile_fn(self._model)
            self._model.compile(
                fullgraph=config.fullgraph, dynamic=config.dynamic, backend=config.backend
            )
            if self._post_compile_fn is not None:
                self._post_compile_fn(self._model)
        self._steps += 1
        return super()._step(
            batch if self._input_transformer is None else self._input_transformer(batch)
        )


class TrainPipelineSparseDistCompAutograd(TrainPipelineSparseDist[In, Out]):
    """A `TrainPipelineSparseDist` whose backward passes run in a context that a subclass chooses.

    By default there is none: what a backward pass exchanges with other ranks is no graph.

    Args:
        model: see `TrainPipelineBase`.
        optimizer: see `TrainPipelineBase`.
        device: see `TrainPipelineBase`.
        execute_all_batches: see `TrainPipelineSparseDist`.
        apply_jit: not supported; must be False.
        context_type: see `TrainPipelineSparseDist`.
        pipeline_postproc: without effect.
        custom_model_fwd: see `TrainPipelineBase`.
        free_features_storage_early: without effect.
        clear_data_dist_inputs: without effect.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        execute_all_batches: bool = True,
        apply_jit: bool = False,
        context_type: type[TrainPipelineContext] = TrainPipelineContext,
        pipeline_postproc: bool = False,
        custom_model_fwd: ModelForward | None = None,
        free_features_storage_early: bool = False,
        clear_data_dist_inputs: bool = False,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            device,
            execute_all_batches,
            apply_jit,
            context_type,
            custom_model_fwd=custom_model_fwd,
        )

    def get_compiled_autograd_ctx(self) -> AbstractContextManager[Any]:
        """Return the context that backward passes run in."""
        return nullcontext()

    def _backward(self, losses: Tensor) -> None:
        with self.get_compiled_autograd_ctx():
            super()._backward(losses)
