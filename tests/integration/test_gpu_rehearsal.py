"""Every model on a pretended CUDA device: what it says there is what it says here."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coverage import Coverage

import fiftyone_regioncap
from benchmarks import gpu_check
from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.batching import caption_batch
from fiftyone_regioncap.captioning.dam.captioner import DamCaptioner, DamVideoCaptioner
from fiftyone_regioncap.captioning.dam.configuration import DamOptions
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.dam.training import DamTraining
from fiftyone_regioncap.captioning.dynrefer.captioner import DynReferCaptioner
from fiftyone_regioncap.captioning.dynrefer.configuration import DynReferOptions
from fiftyone_regioncap.captioning.dynrefer.training import DynReferTraining
from fiftyone_regioncap.captioning.patchioner.captioner import PatchionerCaptioner
from fiftyone_regioncap.captioning.patchioner.configuration import PatchionerOptions
from fiftyone_regioncap.captioning.patchioner.training import PatchionerTraining
from fiftyone_regioncap.captioning.trainable import trained
from fiftyone_regioncap.captioning.ureca.configuration import UrecaOptions
from fiftyone_regioncap.captioning.ureca.training import UrecaTraining
from fiftyone_regioncap.cli.doctor import _torch
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import Prompt, RegionClip
from fiftyone_regioncap.jobs.executors.processes import gpus
from fiftyone_regioncap.jobs.options import PlanOptions
from fiftyone_regioncap.jobs.planning import plan
from fiftyone_regioncap.models.devices import (
    choose_device,
    choose_dtype,
    gpu_fault,
    no_room,
)
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.mobilesam import tinyvit
from fiftyone_regioncap.propagation.mobilesam.propagator import MobileSamPropagator
from fiftyone_regioncap.propagation.mobilesam.segmenter import MobileSam, half_is_fast
from fiftyone_regioncap.propagation.mobilesam.settings import Settings
from fiftyone_regioncap.propagation.sam2.configuration import Sam2Options
from fiftyone_regioncap.propagation.sam2.model import TrackerModel
from fiftyone_regioncap.propagation.sam2.propagator import (
    EdgeTamPropagator,
    Sam2Propagator,
    Sam3TrackerPropagator,
)
from tests.support import dam, patchioner, ureca
from tests.support.cuda import (
    CudaGraph,
    PretendedCard,
    pretended_cuda,
    unusable_cuda,
)
from tests.support.training_steps import training_batch

PACKAGE = Path(fiftyone_regioncap.__file__).parent
HEIGHT, WIDTH = 60, 80
Made = Callable[[str, str], Captioner]
"""Makes a captioner on a device, with a floating point type."""


@pytest.fixture(scope="module", autouse=True)
def measured() -> Iterator[Coverage]:
    coverage = Coverage(data_file=None, source=[str(PACKAGE)])
    coverage.start()
    yield coverage
    coverage.stop()


def clips(count: int = 5, frames: int = 8) -> list[RegionClip]:
    noise = np.random.default_rng(0)
    made = []
    for number in range(count):
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[10:40, 5 + 4 * number : 40 + 4 * number] = True
        shape = (frames, HEIGHT, WIDTH, 3)
        pictures = list(noise.integers(0, 255, shape, dtype=np.uint8))
        made.append(RegionClip(pictures, [mask] * frames, tuple(range(frames))))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "dam").mkdir()
    dam.write_checkpoint(folder / "dam")
    patchioner.write_random_checkpoint(folder / "patchioner")
    return folder


@pytest.fixture(scope="module")
def captioners(folder: Path, golden: Path) -> dict[str, Made]:
    config = ureca.config_of(ureca.SIZES["tiny"], mask_channels=3, tile=56)

    def of_dam(kind: type[DamCaptioner], **options: Any) -> Made:
        chosen = DamOptions(max_new_tokens=8, **options)
        return lambda device, dtype: kind(
            DAM.from_pretrained(
                folder / "dam", device=device, dtype=getattr(torch, dtype)
            ),
            chosen,
        )

    return {
        "dam": of_dam(DamCaptioner),
        "dam-video": of_dam(DamVideoCaptioner),
        "dam-video, drawn": of_dam(DamVideoCaptioner, temperature=1.0, seed=3),
        "patchioner": lambda device, dtype: PatchionerCaptioner.from_pretrained(
            folder / "patchioner", device, PatchionerOptions(dtype=dtype)
        ),
        "dynrefer": lambda device, dtype: DynReferCaptioner.from_pretrained(
            golden / "dynrefer/model", device=device,
            options=DynReferOptions(dtype=dtype),
        ),
        "ureca": lambda device, dtype: ureca.random_captioner(
            config, options=UrecaOptions(max_new_tokens=6), device=device,
            dtype=getattr(torch, dtype),
        ),
    }  # fmt: skip


NAMES = ["dam", "dam-video", "dam-video, drawn", "patchioner", "dynrefer", "ureca"]


@pytest.mark.parametrize("name", NAMES)
def test_captions_in_float32_are_those_of_the_cpu(
    name: str, captioners: dict[str, Made]
) -> None:
    here = captioners[name]("cpu", "float32").caption(clips())
    with pretended_cuda():
        there = captioners[name]("cuda", "float32").caption(clips())
    assert [(c.text, c.error, c.tokens) for c in there] == [
        (c.text, c.error, c.tokens) for c in here
    ]
    assert not any(c.error for c in there) and any(c.text for c in there)
    np.testing.assert_allclose(
        [c.confidence for c in there], [c.confidence for c in here], atol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_runs(name: str, captioners: dict[str, Made]) -> None:
    with pretended_cuda():
        captions = captioners[name]("cuda", "bfloat16").caption(clips(3))
    assert not any(caption.error for caption in captions)


def test_dam_decodes_in_captured_graphs(captioners: dict[str, Made]) -> None:
    before = CudaGraph.captured
    with pretended_cuda():
        captioners["dam-video"]("cuda", "float32").caption(clips())
    assert CudaGraph.captured > before


def prompts() -> list[Prompt]:
    mask = np.zeros((90, 140), dtype=bool)
    mask[20:55, 30:85] = True
    return [
        Prompt(7, 0, box=(10, 10, 60, 60)),
        Prompt(3, 1, mask=mask),
        Prompt(9, 2, points=np.array([[70.0, 40.0]])),
    ]


def same_masks(here: Sequence[Any], there: Sequence[Any], differ: float = 0.0) -> None:
    """Compares masks; ``differ`` is the share of pixels that rounding may change."""
    assert [one.frame for one in here] == [one.frame for one in there]
    for one, other in zip(here, there, strict=True):
        assert one.objects.keys() == other.objects.keys()
        for key, found in one.objects.items():
            assert found.score == pytest.approx(other.objects[key].score, abs=1e-5)
            assert np.mean(found.mask != other.objects[key].mask) <= differ


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize(
    ("kind", "propagator"),
    [
        ("sam2", Sam2Propagator),
        ("edgetam", EdgeTamPropagator),
        ("sam3-tracker", Sam3TrackerPropagator),
    ],
)
def test_sam2_masks_are_those_of_the_cpu(
    kind, propagator, direction, make_model, make_clip
):
    request = PropagationRequest(make_clip(5), prompts(), direction=direction)
    options = Sam2Options(dtype="float32")
    here = list(propagator(make_model(kind), options, device="cpu").propagate(request))
    with pretended_cuda():
        model = propagator(make_model(kind), options, device="cuda")
        same_masks(here, list(model.propagate(request)))


def test_sam2_goes_on_from_a_checkpoint_and_in_bfloat16(make_model, make_clip):
    request = PropagationRequest(make_clip(5), prompts())
    with pretended_cuda():
        propagator = Sam2Propagator(make_model(), device="cuda")
        whole = list(propagator.propagate(request))
        stream = propagator.propagate(request)
        begun = [next(stream), next(stream)]
        again = replace(request, checkpoint=stream.checkpoint())
        same_masks(whole, begun + list(propagator.propagate(again)))


def test_mobilesam_masks_are_those_of_the_cpu(
    mobile_sam_weights, make_clip, monkeypatch
):
    monkeypatch.setattr(tinyvit, "_FUSED", False)  # a kernel that only CPUs have
    request = PropagationRequest(make_clip(3), prompts())
    settings = Settings(side=256)
    model = MobileSam.from_pretrained(mobile_sam_weights, "cpu")
    here = list(MobileSamPropagator(model, settings).propagate(request))
    with pretended_cuda(PretendedCard(bf16=half_is_fast(model.device))):
        model = MobileSam.from_pretrained(mobile_sam_weights, "cuda")
        there = list(MobileSamPropagator(model, settings).propagate(request))
    same_masks(here, there)


def test_regions_and_texts_embed_alike(captioners: dict[str, Made]) -> None:
    here = captioners["patchioner"]("cpu", "float32")
    with pretended_cuda():
        there = captioners["patchioner"]("cuda", "float32")
        regions, texts = there.embed(clips()), there.embed_text(["a dog", "two cars"])
    np.testing.assert_allclose(regions, here.embed(clips()), atol=1e-6)
    np.testing.assert_allclose(texts, here.embed_text(["a dog", "two cars"]), atol=1e-6)


def test_out_of_memory_makes_smaller_batches(
    captioners: dict[str, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = captioners["ureca"]("cpu", "float32").caption(clips())
    with pretended_cuda():
        captioner = captioners["ureca"]("cuda", "float32")
        caption = type(captioner).caption

        def two_fit(self: Any, some: Sequence[RegionClip], **options: Any) -> Any:
            if len(some) > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return caption(self, some, **options)

        monkeypatch.setattr(type(captioner), "caption", two_fit)
        found = caption_batch(captioner, clips())
    assert [one.text for one in found] == [one.text for one in expected]


def test_sam2_out_of_memory_makes_smaller_chunks(make_model, make_clip, monkeypatch):
    two = [prompts()[0], Prompt(9, 0, points=np.array([[70.0, 40.0]]))]
    request = PropagationRequest(make_clip(3), two)
    options = Sam2Options(dtype="float32")
    with pretended_cuda():
        whole = list(
            Sam2Propagator(make_model(), options, device="cuda").propagate(request)
        )
        attend = TrackerModel.attend

        def one_fits(self, features, *args, **kwargs):
            if len(args[0]) > 1:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return attend(self, features, *args, **kwargs)

        monkeypatch.setattr(TrackerModel, "attend", one_fits)
        again = list(
            Sam2Propagator(make_model(), options, device="cuda").propagate(request)
        )
    same_masks(whole, again, differ=1e-3)  # sums of other batches round otherwise


def test_workers_are_told_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pretended_cuda():
        assert gpus() == ["0"]


def test_doctor_names_the_card() -> None:
    with pretended_cuda():
        found = {finding.name: finding.found for finding in _torch()}
    assert found["cuda:0"] == "Pretended, 24 GiB, 20.0 free"


def test_what_is_wrong_with_a_card_is_said() -> None:
    """Each fault has a test of its own beside the module of devices."""
    with pretended_cuda(PretendedCard(bf16=False, free=1 << 30)) as device:
        with pytest.raises(BackendError, match="choose dtype float32 or float16"):
            choose_dtype("bfloat16", device)
        assert "other programs hold 23.0 GiB" in no_room(device, "the weights")
        with pytest.raises(BackendError, match=r"choose one of: cpu, cuda:0$"):
            choose_device("cuda:7")
        assert plan(PlanOptions(), captioner=ModelSpec("measured")).device == "cuda:0"
    assert "don't fit into memory" in no_room(torch.device("cpu"), "the weights")
    with unusable_cuda("The NVIDIA driver on your system is too old"):
        fault = gpu_fault()
        found = plan(PlanOptions(), captioner=ModelSpec("measured"))
    assert fault is not None and "update the driver" in fault.advice
    assert found.device == "cpu" and "update the driver" in found.notes[0]


def test_doctor_says_that_torch_lacks_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {finding.name: finding.found for finding in _torch()}
    assert "CUDA" in found


def test_an_image_that_does_not_fit_is_said(make_model, make_clip, monkeypatch):
    def nothing_fits(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pretended_cuda():
        propagator = Sam2Propagator(make_model(), device="cuda")
        monkeypatch.setattr(TrackerModel, "encode_image", nothing_fits)
        with pytest.raises(BackendError, match="memory is full"):
            next(propagator.propagate(PropagationRequest(make_clip(2), prompts()[:1])))


RECIPES = pytest.mark.parametrize(
    ("recipe", "weights"),
    [
        (DamTraining, "dam"),
        (PatchionerTraining, "patchioner"),
        (DynReferTraining, "dynrefer/model"),
        (UrecaTraining, "ureca/model_qwen2"),
    ],
)


def checkpoint(weights: str, golden: Path, folder: Path) -> Path:
    path = (golden if "/" in weights else folder) / weights
    if not path.is_dir():
        pytest.skip(f"no folder {path}")
    return path


@RECIPES
def test_a_training_step_is_that_of_the_cpu(recipe, weights, golden, folder):
    path = checkpoint(weights, golden, folder)
    here = training_step(recipe, path, "cpu")
    with pretended_cuda():
        there = training_step(recipe, path, "cuda")
    assert there == pytest.approx(here, rel=1e-4)


@RECIPES
def test_a_training_step_in_bfloat16_runs(recipe, weights, golden, folder):
    path = checkpoint(weights, golden, folder)
    with pretended_cuda() as device:
        made = recipe.from_pretrained(path, device=device, dtype=torch.bfloat16)
        at = gpu_check.Setting(device, published=False)
        gpu_check.training_step(made, clips(2), at)
        learned = trained(made.network).values()
        assert all(parameter.isfinite().all() for parameter in learned)


def training_step(recipe: Any, folder: Path, device: str) -> tuple[float, float]:
    """Returns the loss and the norm of all gradients."""
    torch.manual_seed(0)
    made = recipe.from_pretrained(folder, device=device)
    batch = training_batch(made, clips(2), device)
    loss = made.network(**batch)["loss"]
    loss.backward()
    some = [p.grad for p in made.network.parameters() if p.grad is not None]
    assert some
    return loss.item(), torch.nn.utils.get_total_norm(some).item()


def test_gpu_check_runs_at_small_shapes() -> None:
    with pretended_cuda():
        at = gpu_check.Setting(torch.device("cuda"), published=False)
        lines = list(gpu_check.measure(["parity", "dam-graphs"], at, minutes=5))
    assert not [line for line in lines if line.error or line.kept is False]
    assert "answers equal" in {line.name for line in lines}


def test_lines_for_gpus_are_reached(measured: Coverage) -> None:
    """Last in this file: it looks at what the tests above have run (-rP shows it)."""
    measured.stop()
    data, missed, count = measured.get_data(), [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        reached = set(data.lines(str(path)) or ())
        for line in cuda_lines(ast.parse(path.read_text())):
            count += 1
            if line not in reached:
                missed.append(f"{path.relative_to(PACKAGE)}:{line}")
    print(f"{count - len(missed)} of {count} lines for GPUs are reached")
    assert not missed


def cuda_lines(tree: ast.Module) -> set[int]:
    """Returns the first lines of calls to CUDA, and of both ways where it is asked."""
    lines = set()
    for node in ast.walk(tree):
        match node:
            case ast.ExceptHandler(type=ast.expr() as kind) if "cuda" in ast.unparse(
                kind
            ):
                lines.add(node.body[0].lineno)
            case ast.Expr() | ast.Assign() | ast.Return():
                calls = (n.func for n in ast.walk(node) if isinstance(n, ast.Call))
                if any(ast.unparse(call).startswith("torch.cuda") for call in calls):
                    lines.add(node.lineno)
        for block in (getattr(node, "body", None), getattr(node, "orelse", None)):
            for one, after in pairwise(
                [*block, None] if isinstance(block, list) else ()
            ):
                if isinstance(one, ast.If) and "cuda" in ast.unparse(one.test):
                    other = one.orelse[0] if one.orelse else after
                    lines |= {way.lineno for way in (one.body[0], other) if way}
    return lines
