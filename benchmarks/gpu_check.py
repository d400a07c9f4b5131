"""Measures and compares all models on a GPU, in one table.

``make gpu-check`` runs it. Weights are random, shapes are the published ones; on a
machine without CUDA the same checks run at small shapes on the CPU, which shows that
they run, and says nothing of a GPU.

    python -m benchmarks.gpu_check
    python -m benchmarks.gpu_check --only dam --json table.json --minutes 10
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import Sam2VideoModel

from benchmarks import captioning, dynrefer, propagation
from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.dam.captioner import DamVideoCaptioner
from fiftyone_regioncap.captioning.dam.configuration import DamOptions
from fiftyone_regioncap.captioning.dam.generation import Engine
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.dam.tokenizer import DamTokenizer
from fiftyone_regioncap.captioning.dam.training import DamVideoTraining
from fiftyone_regioncap.captioning.dynrefer.training import DynReferTraining
from fiftyone_regioncap.captioning.dynrefer.weights import Files
from fiftyone_regioncap.captioning.patchioner.captioner import PatchionerCaptioner
from fiftyone_regioncap.captioning.patchioner.gpt2 import Gpt2Config
from fiftyone_regioncap.captioning.patchioner.training import PatchionerTraining
from fiftyone_regioncap.captioning.streaming import caption_stream
from fiftyone_regioncap.captioning.trainable import Recipe, trained
from fiftyone_regioncap.captioning.ureca.configuration import UrecaOptions
from fiftyone_regioncap.captioning.ureca.training import UrecaTraining
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.models.devices import (
    choose_device,
    choose_dtype,
    release_memory,
)
from fiftyone_regioncap.propagation.base import PropagationRequest, PropagatorInfo
from fiftyone_regioncap.propagation.sam2.configuration import Sam2Options
from fiftyone_regioncap.propagation.sam2.model import TrackerModel
from fiftyone_regioncap.propagation.sam2.propagator import Sam2Propagator
from fiftyone_regioncap.propagation.sam2.sizes import HIERA
from fiftyone_regioncap.propagation.sam2_official import CONFIGS, Sam2OfficialPropagator
from tests.support.dam import (
    DAM_3B,
    IDLE,
    TINY,
    first_logits,
    random_dam,
    train_tokenizer,
    write_checkpoint,
)
from tests.support.patchioner import Sizes as PatchionerSizes
from tests.support.patchioner import write_random_checkpoint
from tests.support.training_steps import training_batch
from tests.support.ureca import SIZES, config_of, random_captioner


@dataclass(frozen=True)
class Measurement:
    """A line of the table.

    Attributes:
        part: What was measured.
        name: The quantity, its unit included.
        value: Its value; None where it failed.
        wanted: The bound that it should keep, as text; empty where there is none.
        kept: Whether it keeps the bound; None where there is none, or it can't be told
            on this machine.
        error: Why there is no value.
    """

    part: str
    name: str
    value: float | None
    wanted: str = ""
    kept: bool | None = None
    error: str = ""


@dataclass(frozen=True)
class Setting:
    """Where and at which sizes is measured.

    Attributes:
        device: Device to measure.
        published: Whether models have the published shapes; small ones otherwise.
    """

    device: torch.device
    published: bool

    @property
    def cuda(self) -> bool:
        """Returns whether the device is a GPU."""
        return self.device.type == "cuda"


Check = Callable[[Setting], Iterator[Measurement]]


def bounded(
    part: str,
    name: str,
    value: float,
    bound: float,
    *,
    least: bool = False,
    told: bool = True,
) -> Measurement:
    """Makes a line with a bound: at most, or at least, a number.

    Args:
        part: What was measured.
        name: The quantity, its unit included.
        value: Its value.
        bound: The bound.
        least: Whether it is a lower bound.
        told: Whether this run can tell that it is kept.
    """
    kept = (value >= bound if least else value <= bound) if told else None
    return Measurement(part, name, value, f"{'>=' if least else '<='} {bound:g}", kept)


def sam2_model(size: str, at: Setting) -> Any:
    """Makes a SAM 2.1 of a published size, or a small one."""
    return propagation.build_model(str(at.device), size if at.published else None)


def frames_per_second(
    model: Any, objects: int, frames: int, at: Setting, side: tuple[int, int]
) -> tuple[float, float]:
    """Returns the speed of propagation and the peak of memory in MiB.

    Args:
        model: A SAM 2, or another propagator.
        objects: Number of objects.
        frames: Number of frames of the video.
        at: Where it runs.
        side: Height and width of the frames.
    """
    if isinstance(model, Sam2VideoModel):
        model = Sam2Propagator(model, device=at.device)
    video = propagation.Video(frames, *side)
    request = PropagationRequest(video, propagation.boxes(objects), overlap=True)
    found = iter(model.propagate(request))
    next(found)
    if at.cuda:
        torch.cuda.reset_peak_memory_stats()

    def rest() -> None:
        for _ in found:
            pass

    took = captioning.seconds(rest, at.device)
    peak = torch.cuda.max_memory_allocated() / 2**20 if at.cuda else 0.0
    return (frames - 1) / took, peak


def check_sam2_sizes(at: Setting) -> Iterator[Measurement]:
    """Speed and memory by size of the model and size of the video."""
    for size in HIERA if at.published else ["tiny"]:
        model = sam2_model(size, at)
        for side in ((720, 1280), (1080, 1920)) if at.published else ((90, 140),):
            rate, peak = frames_per_second(model, 1, 60, at, side)
            part = f"SAM 2.1 {size}, 1 object, {side[0]} lines"
            yield Measurement(part, "frames/s", rate)
            if at.cuda:
                yield Measurement(part, "peak MiB", peak)


def check_sam2_objects(at: Setting) -> Iterator[Measurement]:
    """Cost by number of objects, and beside transformers' session."""
    model = sam2_model("tiny", at)
    frames = 100 if at.published else 50
    one = propagation.speed(model, 1, frames, at.device.type)
    yield bounded(
        "SAM 2.1 tiny, 1 object",
        "times transformers' session",
        one["session"] / one["ours"],
        1.5,
        least=True,
        told=at.published,
    )
    for count in (8, 16, 64) if at.published else (8,):
        rate, _ = frames_per_second(model, count, 60, at, (720, 1280))
        yield Measurement(f"SAM 2.1 tiny, {count} objects", "frames/s", rate)
        if count == 16:
            base, _ = frames_per_second(model, 1, 60, at, (720, 1280))
            yield bounded("SAM 2.1 tiny, 16 objects", "time of one", base / rate, 4)


def check_sam2_official(at: Setting) -> Iterator[Measurement]:
    """Speed of facebook's own predictor, where its package is installed."""
    if importlib.util.find_spec("sam2") is None:
        return
    from sam2.build_sam import build_sam2_video_predictor

    predictor = build_sam2_video_predictor(
        CONFIGS["sam2.1_hiera_tiny"], None, device=str(at.device)
    )
    info = PropagatorInfo("sam2-official", "random", "", "")
    official, frames = Sam2OfficialPropagator(predictor, info), 60 if at.cuda else 2
    for count in (1, 16) if at.published else (1,):
        rate, _ = frames_per_second(official, count, frames, at, (720, 1280))
        part = f"sam2's own predictor, tiny, {count} objects"
        yield Measurement(part, "frames/s", rate)


def check_compiled(at: Setting) -> Iterator[Measurement]:
    """Speed of the image encoder compiled by Inductor, beside that of eager PyTorch."""
    model = sam2_model("tiny", at)
    encoded, rates = [], []
    for compiled in (False, True):
        tracker = TrackerModel(model, compile=compiled)
        side = tracker.image_size
        pixels = torch.linspace(-1, 1, 3 * side * side, device=at.device)
        pixels = pixels.view(1, 3, side, side)

        def encode(tracker: TrackerModel = tracker, pixels: Any = pixels) -> Any:
            with tracker.arithmetic(torch.float32):
                return tracker.encode_image(pixels).tokens

        encoded.append(encode())
        rates.append(10 / captioning.seconds(partial(_times, 10, encode), at.device))
        how = "compiled" if compiled else "eager"
        yield Measurement(f"SAM 2.1 tiny, encoder {how}", "frames/s", rates[-1])
    error = (encoded[1] - encoded[0]).abs().max() / encoded[0].abs().max()
    part = "SAM 2.1 tiny, encoder compiled"
    yield bounded(part, "features, largest difference", error.item(), 0.01)


def _times(count: int, work: Callable[[], Any]) -> None:
    for _ in range(count):
        work()


def check_sam2_memory(at: Setting) -> Iterator[Measurement]:
    """Memory of a long video against that of a short one."""
    model = sam2_model("tiny", at)
    lengths = (300, 3000) if at.published else (30, 60)
    peaks = [
        frames_per_second(model, 2, length, at, (360, 640))[1] for length in lengths
    ]
    if at.cuda:
        yield bounded(
            f"SAM 2.1 tiny, {lengths[1]} frames",
            f"memory of {lengths[0]}",
            peaks[1] / peaks[0],
            1.05,
        )


def make_dam(at: Setting) -> DAM:
    """Makes a DAM with random weights, of the published shapes on a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Path(folder), 320)
        tokenizer = DamTokenizer(Path(folder))
    config = DAM_3B if at.published else TINY
    return random_dam(config, tokenizer, at.device, choose_dtype(None, at.device))


def check_dam(at: Setting) -> Iterator[Measurement]:
    """DAM's speed by number of waiting clips, beside transformers' generate."""
    dam, tokens = make_dam(at), 100 if at.published else 12
    machine = None
    if at.cuda and at.published:
        machine = captioning.measure_machine(at.device, dam.dtype)
    views = captioning.make_views(dam, 64 if at.published else 6)
    few = views[:4]
    base, ids = captioning.measure_dam(
        "one at a time", dam, few, tokens, 1,
        lambda count: captioning.one_at_a_time(dam, few, count), None, machine,
    )  # fmt: skip
    yield Measurement(
        "DAM, transformers.generate", "clips/s", base.clips / base.seconds
    )
    for waiting in (1, 16, 64) if at.published else (1, len(views)):
        some = few if waiting == 1 else views[:waiting]
        row, _ = captioning.measure_dam(
            "ours", dam, some, tokens, waiting,
            lambda count, some=some, rows=waiting: captioning.batched(
                dam, some, count, rows
            ),
            ids, machine,
        )  # fmt: skip
        part = f"DAM, {waiting} waiting"
        rate = row.clips / row.seconds
        yield Measurement(part, "clips/s", rate)
        yield Measurement(part, "tokens/s", rate * tokens)
        if waiting == 64:
            ratio = rate * base.seconds / base.clips
            yield bounded(part, "times one at a time", ratio, 25, least=True)
        if waiting == 64 and row.decode_limit and row.prefill_limit:
            yield bounded(part, "of bandwidth", row.decode_limit, 0.6, least=True)
            yield bounded(
                part, "of matrix throughput", row.prefill_limit, 0.5, least=True
            )


def check_dam_graphs(at: Setting) -> Iterator[Measurement]:
    """Decoding with CUDA graphs against decoding without."""
    dam = make_dam(at)
    views, tokens = captioning.make_views(dam, 4), 64 if at.published else 8
    answers = []
    for graphs in (False, True) if at.cuda else (False,):

        def engine(self: DAM, rows: int, graphs: bool = graphs) -> Engine:
            ends: frozenset[int] = frozenset()
            return Engine(self.llm, ends, rows, prefill_tokens=8192, graphs=graphs)

        with mock.patch.object(DAM, "engine", engine):
            IDLE.pop(dam, None)
            captioning.batched(dam, views, tokens, 4)
            ids: list[list[int]] = []
            took = captioning.seconds(
                partial(_extend, ids, captioning.batched, dam, views, tokens, 4),
                at.device,
            )
            IDLE.pop(dam, None)
        answers.append(ids)
        how = "with graphs" if graphs else "without graphs"
        yield Measurement(f"DAM, 4 at once, {how}", "tokens/s", 4 * tokens / took)
    if at.cuda:
        same = float(np.mean([a == b for a, b in zip(*answers, strict=True)]))
        yield bounded("DAM, graphs", "answers equal", same, 1, least=True)


def _extend(ids: list[Any], work: Callable[..., list[Any]], *args: Any) -> None:
    ids.extend(work(*args))


Made = tuple[Captioner, Callable[[], Recipe]]
"""A captioner, and what makes the recipe of its training."""


def make_patchioner(at: Setting, folder: Path) -> Made:
    """Makes a Patch-ioner; see :data:`MADE`."""
    sizes = PatchionerSizes()
    if at.published:
        sizes = PatchionerSizes(768, 12, 12, 518, 512, Gpt2Config())
    write_random_checkpoint(folder, sizes)
    captioner = PatchionerCaptioner.from_pretrained(folder, str(at.device))
    device = at.device
    return captioner, lambda: PatchionerTraining.from_pretrained(folder, device=device)


def make_dynrefer(at: Setting, folder: Path) -> Made:
    """Makes a DynRefer; see :data:`MADE`."""
    config = dynrefer.published() if at.published else dynrefer.small()
    files = Files(folder, folder, {}, None, folder)
    captioner = dynrefer.build(config, str(at.device))
    return captioner, lambda: DynReferTraining(captioner, files)


def make_ureca(at: Setting, folder: Path) -> Made:
    """Makes a URECA; see :data:`MADE`."""
    captioner = random_captioner(
        config_of(SIZES["2b" if at.published else "tiny"]),
        options=UrecaOptions(max_new_tokens=32),
        device=str(at.device),
        dtype=choose_dtype(None, at.device),
    )
    return captioner, lambda: UrecaTraining(captioner, folder)


def make_dam_video(at: Setting, folder: Path) -> Made:
    """Makes a DAM for tracks; see :data:`MADE`."""
    captioner = DamVideoCaptioner(make_dam(at), DamOptions(max_new_tokens=32))
    return captioner, lambda: DamVideoTraining(captioner, folder)


MADE: dict[str, Callable[[Setting, Path], Made]] = {
    "Patch-ioner": make_patchioner,
    "DynRefer": make_dynrefer,
    "URECA": make_ureca,
    "DAM": make_dam_video,
}


def check_captioners(at: Setting) -> Iterator[Measurement]:
    """Speed of the captioners, and of a step of their training."""
    count = 16 if at.published else 4
    for name, make in MADE.items():
        with tempfile.TemporaryDirectory() as folder:
            yield from measure_captioner(name, *make(at, Path(folder)), count, at)
        release_memory()


def measure_captioner(
    name: str,
    captioner: Captioner,
    recipe: Callable[[], Recipe],
    count: int,
    at: Setting,
) -> Iterator[Measurement]:
    """Measures one of :data:`MADE`."""
    clips = dynrefer.regions(count, 720, 1280)
    for caption in captioner.caption(clips[:1]):
        if caption.error:
            raise BackendError(caption.error)
    took = captioning.seconds(partial(captioner.caption, clips), at.device)
    yield Measurement(f"{name}, {count} regions", "captions/s", count / took)
    took, peak = training_step(recipe(), clips[:2], at)
    part = f"{name}, a training step of 2"
    yield Measurement(part, "captions/s", 2 / took)
    if at.cuda:
        yield Measurement(part, "peak MiB", peak)


def training_step(
    recipe: Recipe, clips: Sequence[RegionClip], at: Setting
) -> tuple[float, float]:
    """Returns the seconds of a step, its optimizer's included, and the peak in MiB."""
    network, learned = recipe.network.train(), trained(recipe.network).values()
    for parameter in learned:
        parameter.data = parameter.data.float()
    batch = training_batch(recipe, clips, at.device)
    optimizer = torch.optim.AdamW(learned, 1e-5)

    def step() -> None:
        with torch.autocast(at.device.type, torch.bfloat16, enabled=at.cuda):
            network(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    if at.cuda:
        torch.cuda.reset_peak_memory_stats()
    took = captioning.seconds(step, at.device)
    return took, torch.cuda.max_memory_allocated() / 2**20 if at.cuda else 0.0


def check_parity(at: Setting) -> Iterator[Measurement]:
    """What the device computes against the CPU's float32, at small shapes."""
    here = make_small_dam(torch.device("cpu"), torch.float32)
    views = captioning.make_views(here, 3)
    expected = torch.stack([_logits(here, one) for one in views])
    for dtype, bound in ((torch.float32, 1e-3), (torch.bfloat16, 0.05)):
        there = make_small_dam(at.device, dtype)
        found = torch.stack([_logits(there, one) for one in views])
        error = (found - expected).abs().max() / expected.abs().max()
        name = str(dtype).removeprefix("torch.")
        yield bounded(f"DAM, {name}", "logits, largest difference", error.item(), bound)
    clip = propagation.Video(12, 90, 140)
    request = PropagationRequest(clip, propagation.boxes(2), overlap=True)
    masks = {}
    for place in ("cpu", str(at.device)):
        torch.manual_seed(0)
        model = Sam2Propagator(
            propagation.small_model().eval(), Sam2Options(dtype="float32"), device=place
        )
        masks[place] = [
            np.stack([_mask(found.objects[key].mask) for key in sorted(found.objects)])
            for found in model.propagate(request)
        ]
        if place == str(at.device) == "cpu":
            break
    pairs = zip(masks["cpu"], masks[str(at.device)], strict=True)
    differ = float(np.mean([np.mean(one != other) for one, other in pairs]))
    yield bounded("SAM 2, float32", "share of pixels that differ", differ, 1e-3)


def make_small_dam(device: torch.device, dtype: torch.dtype) -> DAM:
    """Makes the same small DAM on any device."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        return DAM.from_pretrained(folder, device, dtype)


def _logits(dam: DAM, views: torch.Tensor) -> torch.Tensor:
    return first_logits(dam, views, captioning.QUESTION).float().cpu()


def _mask(mask: np.ndarray | None) -> np.ndarray:
    return np.zeros((90, 140), dtype=bool) if mask is None else mask


def check_out_of_memory(at: Setting) -> Iterator[Measurement]:
    """Captions still come when the memory allows a part of the rows only."""
    if not (at.cuda and at.published):
        return
    dam = make_dam(at)
    captioner = DamVideoCaptioner(dam, DamOptions(max_new_tokens=16, rows=64))
    clips = dynrefer.regions(32, 480, 640)
    used = torch.cuda.memory_allocated() + (2 << 30)
    torch.cuda.set_per_process_memory_fraction(
        used / torch.cuda.get_device_properties(at.device).total_memory
    )
    try:
        captions = list(caption_stream(captioner, iter(clips)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    good = float(np.mean([not caption.error for caption in captions]))
    yield bounded("DAM, 2 GiB beside the weights", "captions made", good, 1, least=True)


CHECKS: dict[str, Check] = {
    "parity": check_parity,
    "sam2-objects": check_sam2_objects,
    "dam": check_dam,
    "dam-graphs": check_dam_graphs,
    "sam2-memory": check_sam2_memory,
    "captioners": check_captioners,
    "out-of-memory": check_out_of_memory,
    "sam2-sizes": check_sam2_sizes,
    "sam2-official": check_sam2_official,
    "compiled": check_compiled,
}
"""The most important first: a time limit cuts off the last."""


def measure(names: Sequence[str], at: Setting, minutes: float) -> Iterator[Measurement]:
    """Runs checks one after the other; one that fails costs only itself."""
    end = time.monotonic() + 60 * minutes
    for name in names:
        if time.monotonic() > end:
            yield Measurement(name, "", None, error=f"not begun within {minutes:g} min")
            continue
        try:
            yield from CHECKS[name](at)
        except Exception as error:  # whatever a driver may raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Measurement(name, "", None, error=reason[:200])
        release_memory()


def as_row(line: Measurement) -> str:
    """Returns a line of the Markdown table."""
    value = line.error if line.value is None else f"{line.value:.4g}"
    kept = {None: "", True: "yes", False: "NO"}[line.kept]
    return f"| {line.part} | {line.name} | {value} | {line.wanted} | {kept} |"


def main() -> None:
    """Measures, prints the table, and fails when a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=CHECKS, default=[])
    parser.add_argument("--device", help="a CUDA device where there is one")
    parser.add_argument("--small", action="store_true", help="small shapes")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path, help="write the table here, too")
    options = parser.parse_args()
    device = choose_device(options.device)
    at = Setting(device, published=device.type == "cuda" and not options.small)
    if not at.published:
        torch.set_num_threads(1)  # small shapes only wait for more
    card = torch.cuda.get_device_name(device) if at.cuda else "CPU"
    shapes = "published" if at.published else "small"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{card}, {shapes} shapes, random weights, {versions}\n")
    print("| part | quantity | value | wanted | kept |\n|---|---|---|---|---|")
    lines = []
    for line in measure(options.only or list(CHECKS), at, options.minutes):
        lines.append(line)
        print(as_row(line), flush=True)
    if options.json:
        table = {"card": card, "versions": versions, "lines": list(map(asdict, lines))}
        options.json.write_text(json.dumps(table, indent=2))
    bad = [line for line in lines if line.error or line.kept is False]
    if bad:
        raise SystemExit(f"\n{len(bad)} lines failed or are out of bounds")


if __name__ == "__main__":
    main()
