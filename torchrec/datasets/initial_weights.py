"""Rules for the weights that training starts from, of tables and of layers: sections of YAML.

A rule says how far from zero weights start, for a matrix of so many inputs and outputs. A table of E
rows and dimension D has D inputs and E outputs, as `torch.nn.init` counts them.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

Spread: TypeAlias = tuple[Literal["normal", "uniform"], float]
"""Normal with a standard deviation, or uniform between minus a bound and it."""


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Normal(_Rule):
    """N(0, ``std``²)."""

    rule: Literal["normal"] = "normal"
    std: PositiveFloat

    def spread(self, inputs: int, outputs: int) -> Spread:
        """Return how far weights start from zero, whatever the size of the matrix."""
        return "normal", self.std


class Uniform(_Rule):
    """Uniform in ± ``bound``.

    Without one the bound is ``sqrt(1 / E)`` for a table of E rows, and layers start as PyTorch
    starts them: uniform in ± ``sqrt(1 / inputs)``, biases too; cross layers as `XavierNormal`.
    """

    rule: Literal["uniform"] = "uniform"
    bound: PositiveFloat | None = None

    def spread(self, inputs: int, outputs: int) -> Spread | None:
        """Return how far weights start from zero; None: as where there is no rule."""
        return None if self.bound is None else ("uniform", self.bound)


class XavierNormal(_Rule):
    """N(0, 2 / (inputs + outputs)): https://proceedings.mlr.press/v9/glorot10a.html."""

    rule: Literal["xavier_normal"] = "xavier_normal"

    def spread(self, inputs: int, outputs: int) -> Spread:
        """Return how far weights start from zero.

        Example:
            >>> XavierNormal().spread(16, 184)
            ('normal', 0.1)
        """
        return "normal", math.sqrt(2 / (inputs + outputs))


class XavierUniform(_Rule):
    """Uniform in ± sqrt(6 / (inputs + outputs)), of the variance of `XavierNormal`."""

    rule: Literal["xavier_uniform"] = "xavier_uniform"

    def spread(self, inputs: int, outputs: int) -> Spread:
        """Return how far weights start from zero."""
        return "uniform", math.sqrt(6 / (inputs + outputs))


class Kaiming(_Rule):
    """N(0, 2 / inputs), for layers with ReLU: https://arxiv.org/abs/1502.01852."""

    rule: Literal["kaiming"] = "kaiming"

    def spread(self, inputs: int, outputs: int) -> Spread:
        """Return how far weights start from zero."""
        return "normal", math.sqrt(2 / inputs)


class Zeros(_Rule):
    """All zero: for tables, whose rows differ as soon as they have been trained."""

    rule: Literal["zeros"] = "zeros"

    def spread(self, inputs: int, outputs: int) -> Spread:
        """Return that weights start at zero."""
        return "uniform", 0.0


class Pretrained(_Rule):
    """The vectors of another model, by id; ``frozen`` ones are not trained.

    ``file`` is Parquet, with a column of ids and one of lists of D numbers, or a matrix of NumPy (.npy)
    whose row i is the vector of id i. Rows without a vector, that of unknown ids among them, start as
    ``missing`` says: zeros, or the mean of all vectors in the file.
    """

    rule: Literal["pretrained"] = "pretrained"
    file: Annotated[str, Field(min_length=1)]
    id: str = "id"
    vector: str = "vector"
    missing: Literal["zeros", "mean"] = "zeros"
    frozen: bool = False


TableInit: TypeAlias = Annotated[
    Normal | Uniform | XavierNormal | XavierUniform | Kaiming | Zeros, Field(discriminator="rule")
]
"""A rule for a table."""

FeatureInit: TypeAlias = Annotated[
    Normal | Uniform | XavierNormal | XavierUniform | Kaiming | Zeros | Pretrained,
    Field(discriminator="rule"),
]
"""A rule for the table of a feature."""

LayerInit: TypeAlias = Annotated[
    Normal | Uniform | XavierNormal | XavierUniform | Kaiming, Field(discriminator="rule")
]
"""A rule for layers. Not zeros: all outputs of a layer would stay equal."""
