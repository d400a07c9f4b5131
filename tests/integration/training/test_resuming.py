"""A training that was killed, or runs in several processes, comes to the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from shutil import copytree, rmtree

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl

from fiftyone_regioncap.captioning.trainable import Trainable, trained
from fiftyone_regioncap.core.errors import BackendError, Canceled, WeightsError
from fiftyone_regioncap.training.examples import Example
from fiftyone_regioncap.training.loop import (
    CHECKPOINTS,
    Keeper,
    fit,
    is_whole,
    last_checkpoint,
)
from fiftyone_regioncap.training.options import LoopOptions
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
        # Sums of several threads are of another order than those of one.
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
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


@pytest.fixture(scope="module")
def done(
    base: Path, examples: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A training that is done, with two checkpoints; to be copied."""
    folder = start(tmp_path_factory.mktemp("done"), base, examples, epochs=1)
    fit(folder)
    return folder


def cut(path: Path) -> None:
    """Leaves half of a file, as a full disk or a lost connection does."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "name",
    [
        "trainer_state.json",
        "trained.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
    ],
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    done: Path, tmp_path: Path, name: str
) -> None:
    copytree(done / CHECKPOINTS, tmp_path, dirs_exist_ok=True)
    last = last_checkpoint(tmp_path)
    assert last is not None and is_whole(last)
    before = last.parent / f"checkpoint-{int(last.name.split('-')[1]) - 1}"
    cut(last / name)
    assert last_checkpoint(tmp_path) == before
    assert not last.exists()


def test_a_checkpoint_of_fsdp_is_whole(done: Path, tmp_path: Path) -> None:
    copytree(done / CHECKPOINTS, tmp_path, dirs_exist_ok=True)
    last = last_checkpoint(tmp_path)
    assert last is not None
    (last / "optimizer.pt").rename(last / "optimizer.bin")  # as accelerate names it
    assert last_checkpoint(tmp_path) == last


@pytest.mark.parametrize(
    "name",
    [
        "training.json",
        "train.jsonl",
        "done.json",
        "best/trained.safetensors",
        "best/evaluations.json",
        "checkpoints",
    ],
)
def test_a_broken_folder_is_told(done: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "broken"
    copytree(done, folder)
    if name == "checkpoints":
        rmtree(folder / name)
        rmtree(folder / "best")
    else:
        cut(folder / name)
    if name == "best/evaluations.json":  # only read when a training goes on
        (folder / "done.json").unlink()
    with pytest.raises(WeightsError, match=f"{name}.*restart=True"):
        fit(folder)


def test_a_canceled_training_goes_on(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    folder = start(tmp_path, base, examples)
    cancel = threading.Event()

    def stop(step: int, steps: int, loss: float | None) -> None:
        if step == 2:
            cancel.set()

    with pytest.raises(Canceled):
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
        folder = start_training(
            tmp_path / str(count),
            "dam",
            base,
            examples[:4],
            recipe={"rank": 2, "dropout": 0.0},
            epochs=1,
            batch_size=size,
            learning_rate=1e-3,
            max_grad_norm=0.0,
            warmup=0.0,
        )
        if count == 1:
            fit(folder)
        else:
            module = ["-m", "fiftyone_regioncap.training", str(folder)]
            launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            done = subprocess.run(
                [sys.executable, "-m", *launcher, *module],
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


@pytest.mark.parametrize(
    ("precision", "twice"),
    [
        pytest.param("float32", True, id="activations computed twice"),
        pytest.param("bfloat16", False, id="bfloat16"),
        pytest.param("bfloat16", True, id="both"),
    ],
)
def test_less_memory_learns_as_well(
    base: Path, examples: list[Example], tmp_path: Path, precision: str, twice: bool
) -> None:
    plain, _ = losses_and_recipe(start(tmp_path / "plain", base, examples))
    folder = start(
        tmp_path / "less",
        base,
        examples,
        precision=precision,
        gradient_checkpointing=twice,
    )
    less, recipe = losses_and_recipe(folder)
    close = 1e-5 if precision == "float32" else 0.05
    assert less == pytest.approx(plain, rel=close)
    kinds = {parameter.dtype for parameter in trained(recipe.network).values()}
    assert kinds == {torch.float32}


def losses_and_recipe(folder: Path) -> tuple[list[float], Trainable]:
    recipe, result = fit(folder)
    return [entry["loss"] for entry in result.history if "loss" in entry], recipe


def test_a_loss_that_is_no_number_stops_the_training(
    base: Path, examples: list[Example], tmp_path: Path
) -> None:
    folder = start(tmp_path, base, examples, learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(BackendError, match="lower learning_rate"):
        fit(folder)


def test_training_stops_when_it_gets_no_better(tmp_path: Path) -> None:
    loop = LoopOptions(patience=2, best="cider", metrics=("cider",))
    kept = []
    for begin, values in ((0, [0.1, 0.5]), (20, [0.2, 0.5, 0.9])):
        keeper = Keeper(tmp_path, loop, begin)
        control = TrainerControl()
        for number, value in enumerate(values, start=1):
            step = begin + 10 * number
            metrics = {"eval_cider": value, "eval_loss": 1.0}
            best = keeper.decide(step, metrics, control)
            keeper.write()
            assert best == (keeper.best() == step)
            kept.append((step, keeper.best(), control.should_training_stop))
    # The second run goes on from step 20; step 40 is no better than step 20 was.
    assert kept == [
        (10, 10, False),
        (20, 20, False),
        (30, 20, False),
        (40, 20, True),
        (50, 50, True),
    ]
