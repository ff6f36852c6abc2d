"""Random models under random plans train as in one process, and go on from a checkpoint under others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.distributed.one_process import first_phase, moved_phase, second_phase
from tests.distributed.random_models import Case, cases, moving_cases
from tests.distributed.ranks import Workers

pytestmark = pytest.mark.once  # what ranks tell one another does not depend on the kernels


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as found:
        yield found


def check(workers: Workers, case: Case, again: bool) -> None:
    """Train, save, load and train further; raise what any rank has raised."""
    first, second = case.phases
    with tempfile.TemporaryDirectory() as folder:
        asked = [
            (first_phase, first, (case, folder, again)),
            (second_phase, second, (case, folder)),
        ]
        for function, phase, given_ in asked:
            run(workers, function, phase.world_size, *given_)


def run(workers: Workers, function: Callable[..., bool], world_size: int, *given_: object) -> None:
    answers = workers.run(function, world_size, *given_, timeout=30)
    errors = [(r, each) for r, each in enumerate(answers) if isinstance(each, Exception)]
    # Ranks that wait for one that has failed say that it has gone: what failed first.
    for rank, error in sorted(errors, key=lambda pair: is_of_another(pair[1])):
        raise AssertionError(f"Rank {rank} of {world_size} has failed.") from error


def is_of_another(error: Exception) -> bool:
    return any(words in str(error) for words in ("closed by peer", "Received nothing more from"))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_equals_one_process(workers, world_size):
    @settings(max_examples=8, suppress_health_check=list(HealthCheck))
    @given(cases(world_size), st.booleans())
    def holds(case, again):
        check(workers, case, again)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_training_of_many_models_equals_one_process(workers, world_size):
    @settings(max_examples=15 if world_size == 8 else 50, suppress_health_check=list(HealthCheck))
    @given(cases(world_size, most=max(4, world_size)), st.booleans())
    def holds(case, again):
        check(workers, case, again)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_training_goes_on_where_tables_have_moved(workers, world_size):
    @settings(max_examples=10, suppress_health_check=list(HealthCheck))
    @given(moving_cases(world_size))
    def holds(case):
        run(workers, moved_phase, world_size, case)

    holds()
