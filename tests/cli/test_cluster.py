"""The commands under torchrun: to the result of one process, whoever is killed, and without a rank that has stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.training.killing import write_clicks
from tests.training.killing_ranks import (
    EXPERIMENT,
    ROOT,
    differing,
    kill_one,
    ranks_of,
    start,
)

pytestmark = [pytest.mark.once, pytest.mark.slow]

NO_DROPOUT = "model.dropout=0"
LIMIT = 300


def torchrun(
    *arguments: object, ranks: int = 2, restarts: int = 0, cwd: Path
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    return subprocess.run(
        [*command, "-m", "torchrec", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def alone(*arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torchrec", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    write_clicks(folder / "clicks.parquet")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    return folder


@pytest.fixture(scope="module")
def one(data: Path) -> Path:
    """A run of one process, without dropout."""
    alone("train", "experiment.yaml", "-o", "one", NO_DROPOUT, cwd=data)
    return data / "one"


@pytest.fixture(scope="module")
def two(data: Path) -> Path:
    """A run of two ranks, with dropout, that was left alone."""
    assert start(data, data / "two").wait(LIMIT) == 0
    return data / "two"


@pytest.mark.parametrize(
    ("ranks", "placement"), [(2, "row_wise"), (2, "column_wise"), (3, "table_wise")]
)
def test_ranks_end_as_one_process(data: Path, one: Path, ranks: int, placement: str) -> None:
    tables = ("user", "tags", "city")
    wished = ", ".join(f"{name}: {{sharding_types: [{placement}]}}" for name in tables)
    run = data / f"{placement}-{ranks}"
    done = torchrun(
        "train", "experiment.yaml", "-o", run, NO_DROPOUT, f"distributed.constraints={{{wished}}}",
        ranks=ranks, cwd=data,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training for 57 steps") == 1  # it is told once
    expected, found = (load_file(each / "model" / "weights.safetensors") for each in (one, run))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (weight - found[name]).abs().max() < 1e-6, name
    results = [json.loads((each / "result.json").read_text()) for each in (one, run)]
    for name in ("steps", "samples", "epochs", "best_step"):
        assert results[0][name] == results[1][name], name
    assert results[0]["test"] == pytest.approx(results[1]["test"], rel=1e-4)
    report = json.loads((run / "report.json").read_text())
    assert len(report["ranks"]) == ranks
    assert all(each["sent_bytes"] > 1000 and each["messages"] > 4 for each in report["ranks"])
    assert {where.split()[0] for where in report["plan"].values()} == {placement}
    assert "Ranks" in (run / "report.html").read_text()
    lines = [(each / "metrics.jsonl").read_text().splitlines() for each in (one, run)]
    assert len(lines[0]) == len(lines[1])


def test_ranks_end_as_one_process_with_batch_norm_and_the_average_of_weights(data: Path) -> None:
    options = (
        "model.batch_norm=true", "training.average={kind: ema, decay: 0.9}", NO_DROPOUT, "training.epochs=1",
        # Adam would make steps of the rounding that is all the gradient of a bias before a normalisation.
        "training.optimizer=sgd",
    )  # fmt: skip
    alone("train", "experiment.yaml", "-o", "averaged-1", *options, cwd=data)
    done = torchrun("train", "experiment.yaml", "-o", "averaged-2", *options, cwd=data)
    assert done.returncode == 0, done.stderr
    expected, found = (
        load_file(data / f"averaged-{ranks}" / "model" / "weights.safetensors") for ranks in (1, 2)
    )
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (weight - found[name]).abs().max() < 1e-5, name


def test_weights_that_begin_by_part_are_the_same_on_any_ranks(data: Path, one: Path) -> None:
    found = []
    for ranks, placement in ((2, "row_wise"), (3, "table_wise")):
        run = data / f"parts-{ranks}"
        wished = f"distributed.constraints={{user: {{sharding_types: [{placement}]}}}}"
        done = torchrun(
            "train", "experiment.yaml", "-o", run, NO_DROPOUT, wished, "distributed.first_weights=by_part",
            ranks=ranks, cwd=data,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(load_file(run / "model" / "weights.safetensors"))
    expected = load_file(one / "model" / "weights.safetensors")
    for name, weight in found[0].items():
        assert (weight - found[1][name]).abs().max() < 1e-6, name
        if "embedding_bags" in name:
            assert (weight - expected[name]).abs().max() > 1e-3, name


def test_a_run_goes_on_after_a_rank_was_killed(data: Path, two: Path) -> None:
    run = data / "killed"
    process = start(data, run)
    wait_for(run, "step-00000014")
    assert kill_one(process.pid, 1)
    wait_for(run, "step-00000035")
    assert kill_one(process.pid, 0)
    assert process.wait(LIMIT) == 0
    assert differing(run, two) == []
    assert Path(f"{run}.log").read_text().count("exitcode: -9") == 2


def test_a_folder_that_was_refused_is_refused_again(data: Path, two: Path) -> None:
    before = (two / "metrics.jsonl").read_text()
    done = torchrun("train", "experiment.yaml", "-o", two, restarts=1, cwd=data)
    assert done.returncode == 1
    assert done.stderr.count("torchrec: The folder of a run should be new.") == 2
    assert "nothing to do" not in done.stdout
    assert (two / "metrics.jsonl").read_text() == before


def test_a_run_on_two_hosts_goes_on_after_a_rank_was_killed(data: Path, two: Path) -> None:
    run, port = data / "hosts", 29_000 + os.getpid() % 900
    host = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint")
    agents = [start(data, run, (*host, f"localhost:{port}", "--rdzv-id", "job")) for _ in range(2)]
    wait_for(run, "step-00000014")
    assert kill_one(agents[0].pid, 0) or kill_one(agents[1].pid, 0)
    assert [agent.wait(LIMIT) for agent in agents] == [0, 0]
    assert differing(run, two) == []


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 3)])
def test_a_run_goes_on_with_another_number_of_ranks(
    data: Path, one: Path, first: int, then: int
) -> None:
    run = data / f"from-{first}-to-{then}"
    process = start(data, run, ("--standalone", "--nproc-per-node", str(first)), NO_DROPOUT)
    wait_for(run, "step-00000014")
    process.send_signal(signal.SIGTERM)
    process.wait(LIMIT)
    assert not (run / "result.json").exists()
    done = torchrun(
        "train", "experiment.yaml", "-o", run, NO_DROPOUT, "--resume", ranks=then, cwd=data
    )
    assert done.returncode == 0, done.stderr
    expected, found = (load_file(each / "model" / "weights.safetensors") for each in (one, run))
    for name, weight in expected.items():
        assert (weight - found[name]).abs().max() < 1e-6, name


def test_a_rank_that_has_stopped_is_named(data: Path) -> None:
    run = data / "stopped"
    options = ("--standalone", "--nproc-per-node", "3")
    process = start(data, run, options, "distributed.timeout=8", "training.epochs=900")
    wait_for(run, "step-00000014")
    stopped = ranks_of(process.pid)[1]
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    try:
        log = Path(f"{run}.log")
        while "from rank 1" not in log.read_text():
            assert time.monotonic() - began < 8 + 30, log.read_text()[-2000:]
            time.sleep(0.2)
    finally:
        process.kill()
        os.kill(stopped, signal.SIGCONT)
        for rank in ranks_of(process.pid).values():
            os.kill(rank, signal.SIGKILL)
        os.kill(stopped, signal.SIGKILL)
        process.wait(LIMIT)


def test_a_first_rank_that_hangs_in_what_it_does_alone_is_named(data: Path) -> None:
    run = data / "hangs"
    run.mkdir()
    os.mkfifo(run / "experiment.yaml")  # which the first rank opens, and nobody writes to
    done = torchrun(
        "train", "experiment.yaml", "-o", run, "--resume", "distributed.timeout=5", cwd=data
    )
    assert done.returncode == 1
    assert (
        "rank 1: RuntimeError: All ranks should take part in opening the folder of the run within 5 s, the `timeout` "
        "of their process group. Received signs of life alone from rank 0: for so long, nothing has gone on in the "
        "middle of opening the folder of the run, which may wait for a file system or a lock."
    ) in done.stderr


def test_ranks_evaluate_and_predict_as_one_process(data: Path, one: Path) -> None:
    rows = pq.read_table(data / "clicks.parquet")
    pq.write_table(rows, data / "groups.parquet", row_group_size=128)
    expected = alone("evaluate", one, "groups.parquet", "--json", "one.json", cwd=data)
    done = torchrun("evaluate", one, "groups.parquet", "--json", "many.json", ranks=3, cwd=data)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr
    results = [json.loads((data / f"{name}.json").read_text()) for name in ("one", "many")]
    assert results[0] == pytest.approx(results[1], rel=1e-9)
    alone("predict", one, "groups.parquet", "-o", "one.parquet", cwd=data)
    done = torchrun("predict", one, "groups.parquet", "-o", "many.parquet", ranks=3, cwd=data)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(data / "many.parquet").equals(pq.read_table(data / "one.parquet"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distributed.constraints={usr: {ranks: [0]}}", "Received 'usr'; did you mean 'user'?"),
        ("training.batch_size=1", "`batch_size` should be a row for each of 2 ranks at least"),
    ],
)
def test_what_ranks_cannot_do_is_refused_once(data: Path, override: str, message: str) -> None:
    run = data / "refused"
    shutil.rmtree(run, ignore_errors=True)
    done = torchrun("train", "experiment.yaml", "-o", run, override, cwd=data)
    assert done.returncode != 0
    assert message in done.stderr
    assert not run.exists()


def wait_for(run: Path, checkpoint: str) -> None:
    """Wait until a run has come to a checkpoint, or to a later one."""
    end = time.monotonic() + LIMIT
    while max((path.name for path in run.glob("checkpoints/step-*")), default="") < checkpoint:
        assert time.monotonic() < end, Path(f"{run}.log").read_text()[-3000:]
        time.sleep(0.02)
