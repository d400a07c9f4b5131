"""How well propagators follow objects: J, F, frames a second, and what scores mean.

Usage::

    python benchmarks/masks.py [CLIPS] [--propagators mobilesam,flow]

CLIPS (default: the environment's ``REGIONCAP_CLIPS``) holds one folder a clip:
``frames/00000.jpg ...``, ``masks/00000.png ...`` (palette images, 0 is background, n is
object n) and optionally ``meta.json``. A clip whose ``mask_kind`` there isn't ``human``
is listed but left out of the mean: agreement with another model is no accuracy.

Each object is prompted on the first frame where it is, with its mask or its tight box,
and followed forward. J and F (see :mod:`fiftyone_regioncap.evaluation.masks`) are means
over the frames after the prompt, then over a clip's objects, then over clips.

Three baselines run on the same clips: ``still`` keeps the first mask where it is,
``flow-only`` moves it along the optical flow, ``reprompt`` gives MobileSAM the box of
the last mask on each frame.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fiftyone_regioncap.core.types import Frame, Mask, ObjectMask, Prompt, box_of_mask
from fiftyone_regioncap.evaluation.masks import contour_accuracy, region_similarity
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.propagation.base import PropagationRequest, PropagatorInfo
from fiftyone_regioncap.propagation.flow import FlowTracker
from fiftyone_regioncap.propagation.mobilesam.configuration import WEIGHTS
from fiftyone_regioncap.propagation.mobilesam.segmenter import Grid, MobileSam
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.propagation.stream import StreamPropagation, Tracker
from fiftyone_regioncap.system import assets


@dataclass(frozen=True)
class Clip:
    """A clip in memory; small ones only, so that reading isn't measured.

    Attributes:
        name: of its folder.
        frames: each uint8 (H, W, 3) RGB.
        masks: each uint8 (H, W), 0 background, n object n.
        human: whether people drew the masks.
    """

    name: str
    frames: Sequence[Frame]
    masks: Sequence[NDArray[np.uint8]]
    human: bool

    @classmethod
    def load(cls, folder: Path) -> Clip:
        """Reads a folder of the format above."""
        frames = [
            np.array(Image.open(file).convert("RGB"))
            for file in sorted((folder / "frames").iterdir())
        ]
        masks = [np.array(Image.open(file)) for file in sorted(_masks(folder))]
        if len(frames) != len(masks):
            raise click.ClickException(
                f"{folder}: {len(frames)} frames but {len(masks)} masks"
            )
        meta = folder / "meta.json"
        kind = json.loads(meta.read_text()).get("mask_kind") if meta.exists() else None
        return cls(folder.name, frames, masks, kind in (None, "human"))

    @property
    def height(self) -> int:
        """Of every frame, in pixels."""
        return self.frames[0].shape[0]

    @property
    def width(self) -> int:
        """Of every frame, in pixels."""
        return self.frames[0].shape[1]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Frame:
        return self.frames[index]

    def prompts(self, kind: str) -> list[Prompt]:
        """One prompt for each object, on the first frame where it is.

        Args:
            kind: ``"mask"`` or ``"box"``.
        """
        first: dict[int, int] = {}
        for index, mask in enumerate(self.masks):
            for object_id in np.unique(mask).tolist():
                if 0 < object_id < 255:  # 255 marks pixels to ignore
                    first.setdefault(object_id, index)
        prompts = []
        for object_id, frame in first.items():
            mask = self.masks[frame] == object_id
            prompts.append(
                Prompt(object_id, frame, mask=mask)
                if kind == "mask"
                else Prompt(object_id, frame, box=box_of_mask(mask))
            )
        return prompts


class StillTracker:
    """Keeps each object's first mask where it is."""

    def __init__(self) -> None:
        self._masks: dict[int, Mask] = {}

    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        """Takes the next frame."""
        del index
        for prompt in prompts:
            self._masks[prompt.object_id] = _first_mask(frame, prompt)
        return {k: ObjectMask(mask, 1.0) for k, mask in self._masks.items()}

    def state(self) -> dict[str, NDArray[np.generic]]:
        """The masks."""
        return {str(k): mask for k, mask in self._masks.items()}

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Takes up a :meth:`state`."""
        self._masks = {int(k): mask.astype(bool) for k, mask in state.items()}


class RepromptTracker(StillTracker):
    """Segments each frame by the box of the last mask."""

    def __init__(self, model: MobileSam) -> None:
        super().__init__()
        self._model = model

    def step(
        self, index: int, frame: Frame, prompts: Sequence[Prompt]
    ) -> dict[int, ObjectMask]:
        """Takes the next frame."""
        boxes = {k: box_of_mask(mask) for k, mask in self._masks.items()}
        seen = {k: box for k, box in boxes.items() if box is not None}
        scores = dict.fromkeys(self._masks, 0.0)
        if seen:
            decoded = self._model.decode(
                self._model.encode(frame),
                Grid(*frame.shape[:2]),
                boxes=np.array(list(seen.values())),
            )
            for k, logits, iou in zip(seen, decoded.logits, decoded.iou, strict=True):
                self._masks[k] = (logits > 0).numpy()
                scores[k] = min(max(float(iou), 0.0), 1.0)
        kept = super().step(index, frame, prompts)
        return {k: ObjectMask(o.mask, scores.get(k, 1.0)) for k, o in kept.items()}


def _first_mask(frame: Frame, prompt: Prompt) -> Mask:
    if prompt.mask is not None:
        return prompt.mask
    assert prompt.box is not None
    x1, y1, x2, y2 = (round(edge) for edge in prompt.box)
    mask = np.zeros(frame.shape[:2], dtype=bool)
    mask[max(y1, 0) : y2, max(x1, 0) : x2] = True
    return mask


class Baseline:
    """A propagator over one of the trackers here."""

    def __init__(self, name: str, new_tracker: Callable[[], Tracker]) -> None:
        self.info = PropagatorInfo(name, "none", "none", "Apache-2.0")
        self._new_tracker = new_tracker

    def propagate(self, request: PropagationRequest) -> StreamPropagation:
        """Starts a run."""
        return StreamPropagation(request, self._new_tracker)


@dataclass(frozen=True)
class Result:
    """What one propagator did on one clip; one row of arrays an object and frame.

    Attributes:
        objects: int (N,), object ids.
        j: float (N,).
        f: float (N,).
        scores: float (N,), the propagator's own.
        fps: frames a second.
    """

    objects: NDArray[np.int64]
    j: NDArray[np.float64]
    f: NDArray[np.float64]
    scores: NDArray[np.float64]
    fps: float

    def mean(self, values: NDArray[np.float64]) -> float:
        """Over the frames of each object, then over objects."""
        ids = np.unique(self.objects)
        return float(np.mean([values[self.objects == k].mean() for k in ids]))


def measure(propagator: object, clip: Clip, kind: str) -> Result:
    """Runs a propagator over a clip and compares with the masks.

    Args:
        propagator: a :class:`~fiftyone_regioncap.propagation.base.Propagator`.
        clip: with masks on all frames.
        kind: of the prompts, ``"mask"`` or ``"box"``.
    """
    rows = []
    seconds, count = 0.0, 0
    request = PropagationRequest(clip, clip.prompts(kind))
    run = propagator.propagate(request)  # type: ignore[attr-defined]
    while True:
        before = time.perf_counter()
        masks = next(run, None)
        seconds += time.perf_counter() - before
        if masks is None:
            break
        count += 1
        for object_id, found in masks.objects.items():
            if object_id in masks.prompted:
                continue
            truth = clip.masks[masks.frame] == object_id
            mask = np.zeros_like(truth) if found.mask is None else found.mask
            j, f = region_similarity(mask, truth), contour_accuracy(mask, truth)
            rows.append((object_id, j, f, found.score))
    ids, j, f, scores = (np.array(column) for column in zip(*rows, strict=True))
    return Result(ids, j, f, scores, count / seconds)


def _masks(folder: Path) -> list[Path]:
    return [file for file in (folder / "masks").iterdir() if file.suffix == ".png"]


def _calibration(results: Sequence[Result]) -> str:
    """Mean scores where masks are wrong, middling and right."""
    j = np.concatenate([result.j for result in results])
    scores = np.concatenate([result.scores for result in results])
    cells = [
        f"{scores[where].mean():.2f} ({where.sum()})" if where.any() else "- (0)"
        for where in (j < 0.3, (j >= 0.3) & (j <= 0.7), j > 0.7)
    ]
    return f"score where J < 0.3: {cells[0]}, between: {cells[1]}, > 0.7: {cells[2]}"


@click.command(help=__doc__.split("\n")[0])
@click.argument("clips", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--propagators", default="mobilesam", help="Names, with commas between.")
@click.option("--prompts", default="mask,box", help="Kinds, with commas between.")
@click.option("--baselines/--no-baselines", default=True)
@click.option("--only", default="", help="Names of clips, with commas between.")
def main(
    clips: Path | None, propagators: str, prompts: str, baselines: bool, only: str
) -> None:
    """Prints the table."""
    if clips is None:
        if "REGIONCAP_CLIPS" not in os.environ:
            raise click.UsageError("give a folder of clips, or set REGIONCAP_CLIPS")
        clips = Path(os.environ["REGIONCAP_CLIPS"])
    wanted = set(filter(None, only.split(",")))
    loaded = [
        Clip.load(folder)
        for folder in sorted(clips.iterdir())
        if (folder / "masks").is_dir() and (not wanted or folder.name in wanted)
    ]
    if not loaded:
        raise click.UsageError(f"{clips}: no folders with frames/ and masks/")
    rivals: dict[str, object] = {}
    if baselines:
        model = MobileSam.from_pretrained(assets.fetch(WEIGHTS))
        rivals = {
            "still": Baseline("still", StillTracker),
            "flow-only": Baseline(
                "flow-only", lambda: FlowTracker(overlap=False, sharpen=False)
            ),
            "reprompt": Baseline("reprompt", lambda: RepromptTracker(model)),
        }
    for name in propagators.split(","):
        rivals[name], _ = PROPAGATORS.load(ModelSpec(name))
    names = [clip.name + ("" if clip.human else "*") for clip in loaded]
    widths = [max(len(name), 11) for name in names]
    header = f"{'propagator':12} {'prompt':6} {'mean J':>6} {'mean F':>6} {'fps':>6}  "
    click.echo("Each clip: J F of its objects' means")
    click.echo(
        header + "  ".join(n.rjust(w) for n, w in zip(names, widths, strict=True))
    )
    for kind in prompts.split(","):
        for name, propagator in rivals.items():
            results = [measure(propagator, clip, kind) for clip in loaded]
            human = [r for r, clip in zip(results, loaded, strict=True) if clip.human]
            j = np.mean([r.mean(r.j) for r in human or results])
            f = np.mean([r.mean(r.f) for r in human or results])
            fps = np.median([r.fps for r in results])
            cells = [f"{r.mean(r.j):.3f} {r.mean(r.f):.3f}" for r in results]
            row = f"{name:12} {kind:6} {j:6.3f} {f:6.3f} {fps:6.2f}  "
            click.echo(
                row + "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True))
            )
            click.echo(f"{'':20}{_calibration(human or results)}")
    if not all(clip.human for clip in loaded):
        click.echo("* masks made by a model: listed, left out of the means")


if __name__ == "__main__":
    main()
