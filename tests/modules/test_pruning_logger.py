"""The interface of pruning loggers, and the one that logs nothing."""

from __future__ import annotations

from contextlib import contextmanager

from torchrec.modules.pruning_logger import PruningLogBase, PruningLogger, PruningLoggerDefault


def test_default_takes_any_attribute() -> None:
    with PruningLoggerDefault.pruning_logger("event", trainer="t", publisher="p") as log:
        log.anything = 1
    assert log.anything == 1


def test_a_logger_of_ones_own() -> None:
    logged = []

    class Mine(PruningLogger):
        @classmethod
        @contextmanager
        def pruning_logger(cls, event, trainer=None, publisher=None):
            log = PruningLogBase()
            yield log
            logged.append((event, vars(log)))

    with Mine.pruning_logger("prune") as log:
        log.rows = 3
    assert logged == [("prune", {"rows": 3})]
