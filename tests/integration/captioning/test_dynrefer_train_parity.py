"""DynRefer's losses and gradients against the reference, whatever their sizes."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fiftyone_regioncap.captioning.dynrefer.captioner import DynReferCaptioner
from fiftyone_regioncap.captioning.dynrefer.configuration import (
    DynReferOptions,
    DynReferTrainingOptions,
)
from fiftyone_regioncap.captioning.dynrefer.controls import (
    clean_caption,
    drawn_controls,
    noun_phrases,
)
from fiftyone_regioncap.captioning.dynrefer.training import (
    DynReferTraining,
    asymmetric_loss,
    drawn_contexts,
    pair_loss,
)
from fiftyone_regioncap.captioning.dynrefer.weights import locate, published
from fiftyone_regioncap.captioning.trainable import IGNORED, Inputs, trained
from fiftyone_regioncap.captioning.views import nested_views
from fiftyone_regioncap.models.loading import read_tensors
from tests.support import ROOT
from tests.support.training import Golden, close_gradient, close_norms, read_golden
from tests.support.views import polygons_box

LOSS, OUTPUT, GRADIENT, NORM, STEPS, SHARE = 1e-5, 1e-4, 1e-4, 1e-4, 1e-4, 0.015
NOISE = 1e-5
"""Gradients with a smaller norm are zero in exact arithmetic."""


@pytest.fixture(scope="module")
def dynrefer(golden: Path) -> Golden:
    torch.set_num_threads(1)
    return read_golden(golden, "dynrefer")


@pytest.fixture(scope="module")
def controls(golden: Path, dynrefer: Golden) -> dict[str, Any]:
    return json.loads((golden / "dynrefer_train" / "controls.json").read_text())


@pytest.fixture
def recipe(dynrefer: Golden) -> DynReferTraining:
    return load(dynrefer.base / "model", dynrefer.values["settings"])


def load(folder: Path, settings: Mapping[str, Any]) -> DynReferTraining:
    captioner = DynReferCaptioner.from_pretrained(
        folder,
        device="cpu",
        options=DynReferOptions(tasks=("caption", "tags"), dtype="float32"),
    )
    options = DynReferTrainingOptions(
        dropout=settings["dropout"],
        tag_weight=settings["tag_weight"],
        match_weight=settings["attr_weight"],
    )
    return DynReferTraining(captioner, locate(folder), options)


def parameters(dynrefer: Golden, recipe: DynReferTraining) -> dict[str, nn.Parameter]:
    """What trains, by its published name, in the reference's order."""
    ours = {n.removeprefix("model."): p for n, p in trained(recipe.network).items()}
    file = locate(dynrefer.base / "model").trained
    places = {name: place for name, place, _ in published(read_tensors(file))}
    found = {name: ours[places[name]] for name in dynrefer.values["trainable"]}
    assert {id(p) for p in found.values()} == {id(p) for p in ours.values()}
    return found


def batch_of(dynrefer: Golden, recipe: DynReferTraining, number: int) -> Inputs:
    batch = dynrefer.values["batches"][number]
    samples = []
    for sample, contexts, controls in zip(
        batch["samples"], batch["t"], batch["control_strings"], strict=True
    ):
        image = Image.open(dynrefer.base / "inputs" / sample["image"]).convert("RGB")
        caption = clean_caption(sample["raw_caption"])
        assert caption == sample["caption"]
        views = nested_views(
            np.asarray(image),
            polygons_box(sample["segmentation"], *image.size),
            contexts=contexts,
            size=recipe.captioner().model.picture_size,
        )
        tags = sorted({*sample["tag_set1"], *sample["tag_set2"]})
        samples.append(
            {"views": views, "caption": caption, "controls": controls, "tags": tags}
        )
    return recipe.collate(samples)


def test_inputs_and_labels(dynrefer: Golden, recipe: DynReferTraining) -> None:
    for number in range(len(dynrefer.values["batches"])):
        batch = batch_of(dynrefer, recipe, number)
        wanted = {
            key.removeprefix(f"b{number}/"): value
            for key, value in dynrefer.arrays.items()
            if key.startswith(f"b{number}/")
        }
        assert (batch["rois"].numpy() == wanted["rois"]).all()
        pixels = recipe.captioner().model.normalize(batch["pictures"].flatten(0, 1))
        pixels = pixels.unflatten(0, batch["pictures"].shape[:2])
        sub = pixels[..., 7::37, 7::37].numpy()
        np.testing.assert_allclose(sub, wanted["view_sub"], atol=1e-6, rtol=0)
        for ours, key in (
            ("control_ids", "control_ids"),
            ("control_mask", "control_mask"),
            ("tag_labels", "tag_labels"),
        ):
            assert (batch[ours].numpy() == wanted[key]).all(), key
        ids = batch["labels"].masked_fill(batch["labels"] == IGNORED, 0)
        assert (ids.numpy() == wanted["caption_ids"]).all()
        texts = recipe.captioner().text_tower(batch["captions"])
        np.testing.assert_allclose(
            texts.numpy(), wanted["caption_text_embeds"], atol=1e-4, rtol=0
        )


def test_losses_and_gradients(dynrefer: Golden, recipe: DynReferTraining) -> None:
    known = parameters(dynrefer, recipe)
    for number, expected in enumerate(dynrefer.values["batches"]):
        recipe.network.zero_grad()
        losses = recipe.network(**batch_of(dynrefer, recipe, number))
        for name, value in expected["losses"].items():
            assert losses[name].item() == pytest.approx(value, rel=LOSS), name
        losses["loss"].backward()
        gradients = {
            name: np.zeros(p.shape) if p.grad is None else p.grad.numpy()
            for name, p in known.items()
        }
        close_norms(
            [float(np.linalg.norm(g.astype(np.float64))) for g in gradients.values()],
            dynrefer.arrays[f"b{number}/grad_norms"],
            list(gradients),
            relative=NORM,
            skip=NOISE,
        )
        for key, wanted in dynrefer.arrays.items():
            start, kind, name = (*key.split("/", 2), "", "")[:3]
            if start == f"b{number}" and kind in ("grad", "grad_sub"):
                mine = gradients[name]
                mine = mine[::5, ::7] if kind == "grad_sub" else mine
                close_gradient(mine, wanted, GRADIENT, name)


def test_each_loss_alone(dynrefer: Golden, recipe: DynReferTraining) -> None:
    for number, expected in enumerate(dynrefer.values["batches"]):
        batch = batch_of(dynrefer, recipe, number)
        tokens = recipe.captioner().model.region_tokens(
            batch.pop("pictures"), batch.pop("rois")
        )
        np.testing.assert_allclose(
            tokens.detach().numpy(), dynrefer.arrays[f"b{number}/x_v"], atol=OUTPUT
        )
        for term in ("tag", "att", "llm"):
            fixed = torch.from_numpy(dynrefer.arrays[f"b{number}/x_v"])
            fixed = fixed.clone().requires_grad_()
            loss = recipe.network.losses(fixed, **batch)[f"loss_{term}"]
            wanted = expected["single_term_losses"][term]
            assert loss.item() == pytest.approx(wanted, rel=LOSS)
            loss.backward()
            assert fixed.grad is not None
            close_gradient(
                fixed.grad.numpy(),
                dynrefer.arrays[f"b{number}/grad_xv_{term}"],
                GRADIENT,
                term,
            )


def test_steps(dynrefer: Golden, recipe: DynReferTraining) -> None:
    settings = dynrefer.values["settings"]
    known = parameters(dynrefer, recipe)
    still = set(dynrefer.values["no_weight_decay"])
    assert still == {name for name, p in known.items() if p.ndim < 2}
    initial = {name: p.detach().clone() for name, p in known.items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in known.items() if n not in still]},
            {
                "params": [p for n, p in known.items() if n in still],
                "weight_decay": 0.0,
            },
        ],
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
    )
    batches = [
        batch_of(dynrefer, recipe, number)
        for number in range(len(dynrefer.values["batches"]))
    ]
    for number, step in enumerate(dynrefer.values["steps"]):
        optimizer.zero_grad()
        losses = recipe.network(**batches[step["batch"]])
        for name in ("loss", "loss_llm", "loss_tag", "loss_att"):
            assert losses[name].item() == pytest.approx(step[name], rel=STEPS), name
        losses["loss"].backward()
        optimizer.step()
        norms = dynrefer.arrays[f"step{number}/param_norms"]
        for (name, parameter), wanted in zip(known.items(), norms, strict=True):
            # Adam makes full steps of what is rounding noise.
            if not name.endswith(".key.bias"):
                found = parameter.detach().double().norm().item()
                assert found == pytest.approx(wanted, rel=STEPS), name
        moved = {
            name: (p.detach() - initial[name]).double().norm().item()
            for name, p in known.items()
        }
        wanted = dynrefer.arrays[f"step{number}/update_norms"]
        for name, value in zip(known, wanted, strict=True):
            if not name.endswith(".key.bias"):
                assert moved[name] == pytest.approx(value, rel=1e-2, abs=1e-6), name
    with torch.no_grad():
        losses = recipe.network(**batches[0])
    for name, value in dynrefer.values["loss_after_steps_batch0"].items():
        assert losses[name].item() == pytest.approx(value, rel=STEPS), name


def test_asymmetric_loss(dynrefer: Golden) -> None:
    labels = torch.from_numpy(dynrefer.arrays["asl/labels"])
    keys = {key.split("/")[1] for key in dynrefer.arrays if key.startswith("asl/gn")}
    assert keys
    for key in keys:
        negative, positive, margin = map(float, re.findall(r"[\d.]+", key))
        logits = torch.from_numpy(dynrefer.arrays["asl/logits"]).requires_grad_()
        loss = asymmetric_loss(
            logits, labels, negative=negative, positive=positive, margin=margin
        )
        wanted = float(dynrefer.arrays[f"asl/{key}/loss"])
        assert loss.item() == pytest.approx(wanted, rel=LOSS), key
        loss.backward()
        assert logits.grad is not None
        theirs = dynrefer.arrays[f"asl/{key}/grad"]
        close_gradient(logits.grad.numpy(), theirs, GRADIENT, key)


def test_drawn_contexts(dynrefer: Golden) -> None:
    for key, wanted in dynrefer.arrays.items():
        if key.startswith("view_draws/seed"):
            draw = random.Random(int(key.removeprefix("view_draws/seed")))
            views = 1 + wanted.shape[1]
            for row in wanted:
                expected = (0.0, *((int(place) + 1) / 10 for place in row))
                assert drawn_contexts(draw, views) == pytest.approx(expected)


class Injected(random.Random):
    """Gives numbers that were written down, and leaves order alone."""

    def __init__(self, numbers: Sequence[float]) -> None:
        super().__init__(0)
        self.numbers = list(numbers)

    def random(self) -> float:
        return self.numbers.pop(0)

    def shuffle(self, x: Any) -> None:
        pass


def test_caption_cleaning(controls: dict[str, Any]) -> None:
    for raw, cleaned in controls["caption_cleaning"]:
        assert clean_caption(raw) == cleaned


def test_control_words(dynrefer: Golden, controls: dict[str, Any]) -> None:
    samples = {
        sample["caption"]: sample
        for batch in dynrefer.values["batches"]
        for sample in batch["samples"]
    }
    names = (dynrefer.base / "model" / "tag_list.txt").read_text().split("\n")
    for case in controls["candidates"]:
        sample = samples.get(case["caption"], case)
        tags = [
            names[number]
            for key in ("tag_set1", "tag_set2")
            for number in sample.get(key, ())
        ]
        tagged = case.get("pos_tags", sample.get("pos_tags"))
        assert sorted({*tags, *noun_phrases(tagged)}) == case["candidates_sorted"]
    for case in controls["injected_draws_without_shuffle"]:
        candidates = [*case["tag_names"], *noun_phrases(case["pos_tags"])]
        numbers = [case["u_full"], *(case["u_keep"] or [])]
        text = drawn_controls(candidates, Injected(numbers), 0.5, 0.5)
        if case["n_candidates"] is None:
            assert text == case["result"] == "|"
        else:
            assert len(set(candidates)) == case["n_candidates"]
            # An empty candidate alone looks like none.
            kept = [text.removesuffix("|").split(",")]
            counts = {0, 1} & {0, candidates.count("")} if text == "|" else set()
            assert case["n_kept"] in (counts or {len(kept[0])})


def test_statistics_of_control_words(
    dynrefer: Golden, controls: dict[str, Any]
) -> None:
    expected = controls["statistics"]
    candidates = list(expected["kept_fraction"])
    draw = random.Random(0)
    texts = [drawn_controls(candidates, draw, 0.5, 0.5) for _ in range(5000)]
    empty = texts.count("|") / len(texts)
    assert empty == pytest.approx(expected["empty_fraction"], abs=2 * SHARE)
    for name, share in expected["kept_fraction"].items():
        kept = sum(name in text.removesuffix("|").split(",") for text in texts)
        assert kept / len(texts) == pytest.approx(share, abs=2 * SHARE), name


def test_pair_loss_of_two_processes(
    golden: Path, dynrefer: Golden, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            __file__,
            str(golden),
            str(tmp_path),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(golden / "dynrefer_train" / "pair_two_ranks.npz") as stored:
        for rank in range(2):
            with np.load(tmp_path / f"{rank}.npz") as ours:
                wanted = float(stored[f"rank{rank}/loss"])
                assert float(ours["loss"]) == pytest.approx(wanted, rel=LOSS)
                for name in ("gx", "gt", "gb", "gtext"):
                    theirs = np.atleast_1d(stored[f"rank{rank}/{name}"])
                    close_gradient(
                        np.atleast_1d(ours[name]), theirs, GRADIENT, f"{rank} {name}"
                    )


def _one_of_two_processes(golden: Path, out: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    dynrefer = read_golden(golden, "dynrefer")
    recipe = load(dynrefer.base / "model", dynrefer.values["settings"])
    count = len(dynrefer.values["batches"])
    mine = slice(2 * rank, 2 * rank + 2)
    tokens: Tensor = torch.cat(
        [torch.from_numpy(dynrefer.arrays[f"b{n}/x_v"]) for n in range(count)]
    )[mine].requires_grad_()
    captions = [
        sample["caption"]
        for batch in dynrefer.values["batches"]
        for sample in batch["samples"]
    ][mine]
    head = recipe.captioner().model.attributes
    texts = recipe.captioner().text_tower(captions)
    loss = dynrefer.values["settings"]["attr_weight"] * pair_loss(head, tokens, texts)
    loss.backward()
    grads = {
        "gx": tokens.grad,
        "gt": head.temperature.grad,
        "gb": head.bias.grad,
        "gtext": head.text_proj.weight.grad,
    }
    assert all(gradient is not None for gradient in grads.values())
    found = {name: g.numpy() for name, g in grads.items() if g is not None}
    np.savez(out / f"{rank}.npz", loss=loss.item(), **found)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    _one_of_two_processes(Path(sys.argv[1]), Path(sys.argv[2]))
