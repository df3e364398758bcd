"""The files of configs/cluster: torchrun, SLURM, Kubernetes and SkyPilot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from kubeflow_trainer_api import models

from tests.helpers.runs import REPOSITORY, Tiny

CLUSTER = REPOSITORY / "configs/cluster"


@pytest.mark.parametrize("script", ["slurm.sbatch", "torchrun.sh"])
def test_scripts_have_valid_bash_syntax(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(CLUSTER / script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_torchrun_script_checks_its_arguments(tmp_path: Path) -> None:
    script = str(CLUSTER / "torchrun.sh")
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "NODES: how many machines" in done.stderr


def test_torchrun_trains_on_two_processes(tiny: Tiny) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"PATH": path, "NODES": "1", "MAIN": "localhost", "GPUS": "2", "PORT": "0"}
    words = [*tiny.words, "--trainer.accelerator", "cpu", "--trainer.max_steps", "40"]
    done = subprocess.run(
        ["bash", str(CLUSTER / "torchrun.sh"), *words],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 x cpu" in done.stdout
    assert done.stdout.count("Trained on 96 images.") == 1
    assert torch.load(tiny.run / "checkpoints/last.ckpt", weights_only=True)["images_seen"] == 96


def test_slurm_trains_with_its_numbers_and_queues_again_when_stopped(tmp_path: Path) -> None:
    """With stubs of SLURM's commands."""
    for name, does in (("srun", "exit ${CODE}"), ("scontrol", "exit 0")):
        command = tmp_path / name
        command.write_text(f'#!/usr/bin/env bash\necho {name} "$@" >> {tmp_path}/log\n{does}\n')
        command.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_NTASKS_PER_NODE": "8",
        "SLURM_JOB_ID": "77",
    }
    script = str(CLUSTER / "slurm.sbatch")
    for code, queued in ((0, 0), (1, 0), (143, 1)):
        (tmp_path / "log").unlink(missing_ok=True)
        words = ["bash", script, "--config", "a.yaml", "--name", "my run"]
        done = subprocess.run(words, env={**environment, "CODE": str(code)}, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        log = (tmp_path / "log").read_text()
        assert "imagen-pl fit --config a.yaml --name my run --existing resume" in log
        assert "--trainer.num_nodes 4 --trainer.devices 8" in log
        assert log.count("scontrol requeue 77") == queued


def test_kubernetes_objects_match_their_schemas_and_each_other() -> None:
    """Kubeflow's classes drop unknown fields, so a round trip finds them."""
    kinds = {
        "PersistentVolumeClaim": models.IoK8sApiCoreV1PersistentVolumeClaim,
        "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime,
        "TrainJob": models.TrainerV1alpha1TrainJob,
    }
    found = list(yaml.safe_load_all((CLUSTER / "kubeflow.yaml").read_text()))
    assert [each["kind"] for each in found] == list(kinds)
    for each in found:
        read = kinds[each["kind"]].from_dict(each)
        assert read is not None
        assert read.to_dict() == each
    claim, runtime, job = found
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    trainer = job["spec"]["trainer"]
    assert f"--trainer.num_nodes={trainer['numNodes']}" in trainer["args"]
    assert f"--trainer.devices={trainer['numProcPerNode']}" in trainer["args"]


def test_skypilot_passes_nodes_and_gpus_to_torchrun(tmp_path: Path) -> None:
    """With a stub of torchrun."""
    torchrun = tmp_path / ".venv/bin/torchrun"
    torchrun.parent.mkdir(parents=True)
    torchrun.write_text('#!/usr/bin/env bash\necho "$@"\n')
    torchrun.chmod(0o755)
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    environment = {
        "PATH": os.environ["PATH"],
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_RANK": "1",
        "ARGUMENTS": "--config a.yaml --name coco",
    }
    words = ["bash", "-euc", task["run"]]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (
        "--nnodes 2 --nproc_per_node 8 --node_rank 1 --master_addr 10.0.0.1 --master_port 29500 "
        "-m imagen_pl.cli.main fit --config a.yaml --name coco --runs_dir /runs --existing resume "
        "--trainer.num_nodes 2 --trainer.devices 8"
    )
    assert list(task["file_mounts"]) == ["/runs"]
    assert subprocess.run(["bash", "-nc", task["setup"]]).returncode == 0
