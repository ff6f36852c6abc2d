"""What starts the main job on several hosts: files that shells, torchrun and Kubernetes read as they are meant."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import parse_args

pytestmark = pytest.mark.once

DEPLOY = Path(__file__).parents[1] / "deploy"
SHELLCHECK = shutil.which("shellcheck")
# What Slurm tells a job of two hosts, one of which has begun anew.
SLURM = {
    "SLURM_JOB_NODELIST": "first,second", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2",
    "SLURM_CPUS_PER_TASK": "32", "SLURM_RESTART_COUNT": "1",
}  # fmt: skip


def started(script: Path, folder: Path, *arguments: str) -> list[str]:
    """Return the lines that a script of Slurm calls ``srun`` with, and the threads that it gives a rank."""
    commands = {
        "scontrol": 'echo "$*" >&2; printf "first\\nsecond\\n"',
        "srun": 'printf "%s\\n" "$OMP_NUM_THREADS" "$@"',
    }
    for name, code in commands.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
    done = subprocess.run(
        ["bash", str(script), *arguments],
        env=SLURM | {"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "show hostnames first,second\n"
    return done.stdout.splitlines()


def train_of(options: Any) -> list[str]:
    """Return what follows ``torchrec train`` in a line of torchrun."""
    assert options.module
    assert [options.training_script, options.training_script_args[0]] == ["torchrec", "train"]
    rest: list[str] = options.training_script_args[1:]
    return rest


@pytest.mark.skipif(sys.platform == "win32", reason="Slurm runs on Linux")
def test_slurm_starts_torchrun_on_each_host(tmp_path: Path) -> None:
    threads, command, *line = started(
        DEPLOY / "train.sbatch", tmp_path, "my experiment.yaml", "training.epochs=2"
    )
    assert command == "torchrun"
    options = parse_args(line)
    assert train_of(options) == ["my experiment.yaml", "training.epochs=2", "--resume"]
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("2", "4", 3)
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", "first:29400")
    assert options.rdzv_id == "7"
    assert int(threads) * int(options.nproc_per_node) == 32


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck")
def test_the_script_of_slurm_is_sound() -> None:
    assert SHELLCHECK is not None
    subprocess.run([SHELLCHECK, str(DEPLOY / "train.sbatch")], check=True)


def objects() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "train.yaml").read_text()))


def test_pods_find_one_another_and_start_torchrun() -> None:
    service, job = objects()
    name, pods = job["metadata"]["name"], job["spec"]["template"]["spec"]
    # Pods of a job have its name as a label, and find one another by that of the service.
    assert service["spec"]["selector"] == {"job-name": name}
    assert pods["subdomain"] == service["metadata"]["name"]
    assert (service["spec"]["clusterIP"], job["spec"]["completionMode"]) == ("None", "Indexed")
    (container,) = pods["containers"]
    program, *line = container["command"]
    assert program == "torchrun"
    options = parse_args(line)
    assert train_of(options) == ["experiment.yaml", "--resume"]
    assert int(options.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert options.rdzv_backend == "c10d"
    assert options.rdzv_endpoint == f"{name}-0.{pods['subdomain']}:29400"
    (variable,) = container["env"]
    cores = int(container["resources"]["requests"]["cpu"])
    assert variable["name"] == "OMP_NUM_THREADS"
    assert int(variable["value"]) * int(options.nproc_per_node) == cores
    assert {each["name"] for each in container["volumeMounts"]} == {
        each["name"] for each in pods["volumes"]
    }


def test_kubernetes_knows_all_of_it() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for each in objects():
        schemas.validate(each, schemas.latest_version(), strict=True)
