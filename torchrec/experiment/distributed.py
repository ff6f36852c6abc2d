"""The section of an experiment file on how several processes share the work."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from torchrec.experiment.section import Section

Wire = Literal["fp32", "fp16", "bf16", "fp8", "int8"]


class PlacementSection(Section):
    """Where a table may be."""

    sharding_types: list[str] | None = Field(
        default=None,
        description="which it may have, as `table_wise`, `row_wise` and `column_wise`; none: any",
    )
    ranks: list[NonNegativeInt] | None = Field(
        default=None, description="only these have parts of it; none: any"
    )
    forbidden_ranks: list[NonNegativeInt] | None = Field(
        default=None, description="these have none of it"
    )
    together_with: str | None = Field(
        default=None, description="the table whose rank it is on, both of them whole"
    )


class DistributedSection(Section):
    """How the processes that `torchrun` starts share the work; without effect in one process."""

    plan: Annotated[str, Field(min_length=1)] = Field(
        default="auto",
        description="where the tables are: `auto`, or a file of `torchrec plan --output`, relative to "
        "the experiment file",
    )
    rates: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="what `auto` goes by on the CPU: a file of `torchrec plan calibrate`, relative to the "
        "experiment file; none: bandwidths",
    )
    constraints: dict[str, PlacementSection] = Field(
        default={}, description="by table, what `auto` has to keep to"
    )
    forward_precision: Wire = Field(
        default="fp32", description="of vectors on their way between ranks"
    )
    backward_precision: Wire = Field(default="fp32", description="of their gradients")
    exact: bool = Field(
        default=False,
        description="send all rows, instead of sums of them where these are less: results do not depend "
        "on the plan then, to the last bit of what tables learn",
    )
    first_weights: Literal["as_one", "by_part"] = Field(
        default="as_one",
        description="as one process draws them, for which each rank makes the whole model for a moment, or "
        "part by part, other ones, for which a rank needs memory for its parts alone",
    )
    timeout: PositiveFloat = Field(
        default=600.0,
        description="seconds that ranks wait for one another in a step, or for a sign of life of one that "
        "reads or writes, before all end and say who is missing",
    )

    @model_validator(mode="after")
    def _check(self) -> DistributedSection:
        if self.plan != "auto" and self.constraints:
            raise ValueError(
                "`distributed.constraints` should be given for `distributed.plan` auto. Received them "
                f"for the plan '{self.plan}'."
            )
        if self.exact and (self.forward_precision, self.backward_precision) != ("fp32", "fp32"):
            raise ValueError(
                "`distributed.exact` should be given for vectors and gradients in fp32. Received it "
                f"for {self.forward_precision} and {self.backward_precision}."
            )
        return self
