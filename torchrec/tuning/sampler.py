"""What to try next, and when to give up: Optuna, asked anew each time with all that is known.

A proposal is a function of the seed and of the trials before. So a search that was killed goes on as it
would have, and nothing of Optuna's has to be kept.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torchrec.datasets.loader import seed_of
from torchrec.tuning.space import Choice, Range, SearchSpace, Value
from torchrec.tuning.trials import Trial

if TYPE_CHECKING:
    import optuna

PrunerName: TypeAlias = Literal["median", "halving", "none"]

_RANDOM_TRIALS = 6  # before there is something to learn from
_FEWEST_TO_COMPARE = 4
_REDUCTION = 3  # of a number of trials by halving


class Proposal:
    """Values to try.

    Args:
        space: what they are of.
        trial: of Optuna.
        rival_curves: where trials are halved, the values of others at their evaluations; None: Optuna says
            what is hopeless.
    """

    def __init__(
        self,
        space: SearchSpace,
        trial: optuna.Trial,
        rival_curves: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.values: dict[str, Value] = {
            key: _from_optuna(space[key], value) for key, value in trial.params.items()
        }
        self._trial, self._rivals = trial, rival_curves

    def is_hopeless(self, evaluation: int, value: float) -> bool:
        """Note the value at an evaluation, and say whether others did so much better there."""
        if self._rivals is not None:
            return is_halved(self._rivals, evaluation, value)
        self._trial.report(value, evaluation)
        return bool(self._trial.should_prune())


def is_halved(rival_curves: Sequence[Sequence[float]], evaluation: int, value: float) -> bool:
    """Say whether a value is not among the best third at evaluation 1, 3, 9 and so on.

    This is asynchronous successive halving, https://arxiv.org/abs/1810.05934. Optuna's own reads what it wrote to
    earlier trials while they ran, which those that are handed over to it do not have.

    Example:
        >>> rivals = [[0.7], [0.6], [0.5], [0.4]]
        >>> is_halved(rivals, 1, 0.65), is_halved(rivals, 1, 0.8), is_halved(rivals, 2, 0.1)
        (True, False, False)
    """
    rung = evaluation
    while rung % _REDUCTION == 0:
        rung //= _REDUCTION
    there = [curve[evaluation - 1] for curve in rival_curves if len(curve) >= evaluation]
    if rung != 1 or len(there) < _FEWEST_TO_COMPARE:
        return False
    kept = max(1, (len(there) + 1) // _REDUCTION)
    return sum(other >= value for other in there) >= kept


class Sampler:
    """Proposes values in a space.

    Args:
        space: what may vary.
        seed: of the random numbers.
        pruner: when a trial is given up: ``"median"``, where its best value so far is below the median of
            those of others at the same evaluation; ``"halving"``, where it is not among the best third at
            evaluations 1, 3, 9 and so on; or ``"none"``.

    Raises:
        ImportError: Optuna is not installed.
    """

    def __init__(self, space: SearchSpace, seed: int, pruner: PrunerName) -> None:
        try:
            import optuna
        except ImportError:
            raise ImportError(
                "Optuna should be installed to search for options: pip install 'rowwise[tune]'."
            ) from None
        self._optuna: Any = optuna
        self._space, self._seed, self._pruner = space, seed, pruner
        self._distributions = {key: _distribution(one) for key, one in space.items()}

    def propose(self, trials: Sequence[Trial], start: Mapping[str, Value] | None) -> Proposal:
        """Return what to try next.

        Args:
            trials: those that were made, from the first on.
            start: the place of the first, the experiment as it is, in the space; None where it has none.
        """
        with _quiet(self._optuna):
            study = self._study(trials, start)
            curves = [trial.curve for trial in trials] if self._pruner == "halving" else None
            return Proposal(self._space, study.ask(self._distributions), curves)

    def importances(
        self, trials: Sequence[Trial], start: Mapping[str, Value] | None
    ) -> dict[str, float]:
        """Return how much of the difference between good and bad trials is due to each key, the largest first.

        By PED-ANOVA, https://arxiv.org/abs/2304.10255; empty with fewer than four trials to tell from.
        """
        with _quiet(self._optuna):
            study = self._study([one for one in trials if one.state == "complete"], start)
            if len(study.trials) < _FEWEST_TO_COMPARE:
                return {}
            found = self._optuna.importance.get_param_importances(
                study, evaluator=self._optuna.importance.PedAnovaImportanceEvaluator()
            )
        return dict(found)

    def _study(self, trials: Sequence[Trial], start: Mapping[str, Value] | None) -> Any:
        """Return a study that knows the trials."""
        optuna = self._optuna
        study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.TPESampler(
                seed=seed_of(self._seed, len(trials)) % 2**32, n_startup_trials=_RANDOM_TRIALS
            ),
            pruner=self._made_pruner(),
        )
        for trial in trials:
            values = trial.values if trial.number > 1 else start
            if values is not None:
                study.add_trial(self._known(trial, values))
        return study

    def _made_pruner(self) -> Any:
        pruners = self._optuna.pruners
        if self._pruner == "median":
            return pruners.MedianPruner(n_startup_trials=_FEWEST_TO_COMPARE, n_warmup_steps=1)
        return pruners.NopPruner()

    def _known(self, trial: Trial, values: Mapping[str, Value]) -> Any:
        states = self._optuna.trial.TrialState
        complete = trial.state == "complete"
        return self._optuna.trial.create_trial(
            # A trial that failed is to the sampler the worst of those that were given up.
            state=states.COMPLETE if complete else states.PRUNED,
            value=trial.value if complete else None,
            params={key: _to_optuna(self._space[key], value) for key, value in values.items()},
            distributions=self._distributions,
            intermediate_values=dict(enumerate(trial.curve, 1)),
        )


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Keep Optuna's log and its warnings of features that may change to itself while inside."""
    logging = optuna.logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def _distribution(dimension: Range | Choice) -> optuna.distributions.BaseDistribution:
    import optuna

    if isinstance(dimension, Choice):
        return optuna.distributions.CategoricalDistribution(
            [json.dumps(v) for v in dimension.values]
        )
    low, high, log, step = dimension.low, dimension.high, dimension.log, dimension.step
    if dimension.whole:
        return optuna.distributions.IntDistribution(
            int(low), int(high), log=log, step=int(step or 1)
        )
    return optuna.distributions.FloatDistribution(low, high, log=log, step=step)


def _to_optuna(dimension: Range | Choice, value: Value) -> object:
    return json.dumps(value) if isinstance(dimension, Choice) else value


def _from_optuna(dimension: Range | Choice, value: object) -> Value:
    if isinstance(dimension, Choice):
        found: Value = json.loads(str(value))
        return found
    assert isinstance(value, int | float)
    return dimension.rounded(value)
