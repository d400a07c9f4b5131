"""A training that was killed, or runs in several processes, comes to the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fiftyone_regioncap.core.errors import Cancelled
from fiftyone_regioncap.training.examples import Example
from fiftyone_regioncap.training.loop import (
    CHECKPOINTS,
    fit,
    is_whole,
    last_checkpoint,
)
from tests.support import ROOT
from tests.support.dam import TINY, write_checkpoint
from tests.support.training import drawn_examples, start_training


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dam")
    write_checkpoint(folder, TINY)
    return folder


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    torch.set_num_threads(1)
    return drawn_examples(tmp_path_factory.mktemp("images"), 6)


def start(folder: Path, base: Path, examples: list[Example], **loop: object) -> Path:
    options = {"epochs": 3, "batch_size": 1, "accumulation": 2, "learning_rate": 1e-3}
    return start_training(
        folder,
        "dam",
        base,
        examples[:5],
        examples[5:],
        recipe={"rank": 2},
        checkpoint_steps=1,
        **{**options, **loop},
    )


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    name = f"checkpoint-{step}"
    return load_file(folder / CHECKPOINTS / name / "trained.safetensors")


def run(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "fiftyone_regioncap.training", str(folder)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_killed_training_ends_with_the_same_weights(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    whole = start(tmp_path / "whole", base, examples)
    _, undisturbed = fit(whole)
    killed = start(tmp_path / "killed", base, examples)
    process = run(killed)
    while process.poll() is None:
        # Anywhere: in the middle of a step, or of writing a checkpoint.
        if list((killed / CHECKPOINTS).glob("checkpoint-*/optimizer.pt")):
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(0.01)
    assert process.returncode == -signal.SIGKILL
    _, resumed = fit(killed)
    assert resumed.steps == undisturbed.steps
    assert resumed.evaluations.keys() == undisturbed.evaluations.keys()
    for step, metrics in undisturbed.evaluations.items():
        assert resumed.evaluations[step]["loss"] == metrics["loss"]
    ours, theirs = (weights(f, undisturbed.steps) for f in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_that_was_not_finished_is_passed_over(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    folder = start(tmp_path, base, examples, epochs=1)
    fit(folder)
    last = last_checkpoint(folder / CHECKPOINTS)
    assert last is not None and is_whole(last)
    before = last.parent / f"checkpoint-{int(last.name.split('-')[1]) - 1}"
    state = last / "trainer_state.json"
    state.write_text(state.read_text()[: len(state.read_text()) // 2])
    assert last_checkpoint(folder / CHECKPOINTS) == before
    assert not last.exists()


def test_a_cancelled_training_goes_on(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    folder = start(tmp_path, base, examples)
    cancel = threading.Event()

    def stop(step: int, steps: int, loss: float | None) -> None:
        if step == 2:
            cancel.set()

    with pytest.raises(Cancelled):
        fit(folder, on_step=stop, cancel=cancel)
    seen: list[int] = []
    _, result = fit(folder, on_step=lambda step, steps, loss: seen.append(step))
    assert seen[0] == 3 or seen[0] == 4
    assert result.steps == seen[-1]


def test_two_processes_have_the_gradients_of_one(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    """Plain gradient descent is not offered, so that the first step's moments tell."""
    moments = []
    for count, size in ((1, 4), (2, 2)):
        folder = start(
            tmp_path / str(count),
            base,
            [*examples[:4], *examples[:4]],
            epochs=1,
            batch_size=size,
            accumulation=1,
            max_grad_norm=0.0,
            warmup=0.0,
        )
        settings = json.loads((folder / "training.json").read_text())
        settings["recipe"] |= {"dropout": 0.0}
        (folder / "training.json").write_text(json.dumps(settings))
        lines = (folder / "train.jsonl").read_text().splitlines()[:4]
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "held_out.jsonl").write_text("")
        launcher = [
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={count}",
        ]
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                *(launcher if count > 1 else []),
                *(["-m"] if count > 1 else []),
                "fiftyone_regioncap.training",
                str(folder),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        state = torch.load(
            folder / CHECKPOINTS / "checkpoint-1" / "optimizer.pt", weights_only=True
        )
        # After one step, Adam's first moment is a tenth of the gradient.
        moments.append({k: 10 * v["exp_avg"] for k, v in state["state"].items()})
    one, two = moments
    assert one.keys() == two.keys() and one
    for key, gradient in one.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        torch.testing.assert_close(two[key], gradient, rtol=0, atol=1e-5 * scale)
