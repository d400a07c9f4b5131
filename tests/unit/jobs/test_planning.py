"""What a job's models need of a card: in the SDK, the shell and doctor alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import fiftyone_regioncap as regioncap
from fiftyone_regioncap.cli import doctor
from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.core.errors import OptionError
from tests.support.cuda import PretendedCard, pretended_cuda, unusable_cuda
from tests.support.dam import write_checkpoint

GIB = 1 << 30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder)
    return str(folder)


def test_a_card_is_planned_with_rows_speed_and_assumptions() -> None:
    plan = regioncap.plan("24", captioner="dam-video", propagator="sam2")
    masks, captions = plan.models
    assert plan.ok and (masks.rows, masks.dtype) == (16, "bfloat16")
    assert 10 <= captions.rows <= 20  # of 720 MiB beside 6.7 GiB of weights
    assert captions.rates[1] < captions.rates[captions.rows] < 10
    assert any("50%" in note and "not measured" in note for note in plan.notes)


def test_the_shell_says_the_same(tiny: str) -> None:
    asked = ["plan", "--captioner", "dam", "--captioner-weights", tiny, "--gpu", "L4"]
    shown = CliRunner().invoke(main, asked)
    assert shown.exit_code == 0 and "L4, 24 GiB" in shown.output
    found = json.loads(CliRunner().invoke(main, [*asked, "--json"]).output)
    assert found["fits"] and found["models"][0]["configuration"] == Path(tiny).name
    assert (
        found == regioncap.plan("L4", captioner="dam", captioner_weights=tiny).to_dict()
    )


def test_what_does_not_fit_is_said_with_what_to_choose() -> None:
    asked = ["plan", "--captioner", "dam-video", "--gpu", "4", "--json"]
    shown = CliRunner().invoke(main, asked)
    found = json.loads(shown.output)
    assert shown.exit_code == 1 and not found["fits"]
    (advice,) = [one for one in found["notes"] if one.startswith("It does not fit")]
    assert "quantization=4bit for the captioner" in advice and "such as T4" in advice


def test_models_without_weights_of_their_own_are_planned_by_published_sizes() -> None:
    plan = regioncap.plan("H100", captioner="ureca", embedder="patchioner")
    assert [one.footprint and one.footprint.name for one in plan.models] == [
        "InternVL2.5-8b",
        "Talk2DINO with a memory",
    ]
    assert regioncap.plan("24", captioner="measured").models[0].footprint is None


def test_a_training_is_planned(tiny: str) -> None:
    plan = regioncap.plan("24", captioner="dam", captioner_weights=tiny, training=True)
    (one,) = plan.models
    assert plan.ok and (one.role, one.rows) == ("training of", 4)
    assert one.working > 4 * one.weights / 10
    assert "parameters, bfloat16\n" in plan.to_markdown()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"training": True}, "name the captioner"),
        ({"training": True, "captioner": "measured"}, "measured has no training"),
        ({"gpu": "RTX9"}, "no card of the table"),
    ],
)
def test_what_can_not_be_planned_is_said(asked: dict[str, object], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        regioncap.plan(**asked)


def test_this_machines_card_is_planned_with_what_others_leave(tiny: str) -> None:
    card = PretendedCard(free=9 * GIB)
    with pretended_cuda(card):
        plan = regioncap.plan(captioner="dam", captioner_weights=tiny)
    assert (plan.device, plan.free) == ("cuda:0", 9 * GIB)
    assert any("Other programs hold 15.0 GiB of cuda:0" in note for note in plan.notes)


def test_two_cards_of_different_size_are_said() -> None:
    small, large = PretendedCard(total=16 * GIB), PretendedCard(total=80 * GIB)
    with pretended_cuda(small, large):
        plan = regioncap.plan(captioner="measured")
        named = regioncap.plan(captioner="measured", device="cuda:0")
    assert (plan.device, named.device) == ("cuda:1", "cuda:0")
    assert any("The cards differ" in note for note in plan.notes)


def test_a_card_without_bfloat16_computes_in_float32() -> None:
    with pretended_cuda(PretendedCard(bf16=False)):
        (one,) = regioncap.plan(propagator="sam2").models
    assert one.dtype == "float32"
    (table,) = regioncap.plan("T4", propagator="sam2").models
    assert table.dtype == "float32"


def test_the_cpu_is_planned_with_the_reason() -> None:
    with unusable_cuda("The NVIDIA driver is too old (found version 11040)"):
        plan = regioncap.plan(captioner="measured")
    assert plan.device == "cpu"
    assert any("driver is too old, for CUDA 11.4" in note for note in plan.notes)


def test_doctor_shows_what_would_be_chosen() -> None:
    with pretended_cuda():
        found = {one.name: one.found for one in doctor._plan()}
    assert "cuda:0: bfloat16" in found["propagator"]
