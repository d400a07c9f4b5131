"""Evaluates propagators: J, F, time per frame, and the calibration of scores.

Usage::

    python -m benchmarks.masks [CLIPS] [--propagators mobilesam,flow] [--synthetic]

CLIPS (default: the environment's ``REGIONCAP_CLIPS``) holds one folder a clip:
``frames/00000.jpg ...``, ``masks/00000.png ...`` (palette images, 0 is background, n is
object n) and optionally ``meta.json``. A clip whose ``mask_kind`` there isn't ``human``
is listed but left out of the mean: agreement with another model is no accuracy. The
clips that settings are tuned on are another folder than those that are reported.

Each object is prompted with its mask or its tight box on the first frame where it is,
and followed forward; from later ``--starts`` it is followed both ways. J and F (see
:mod:`fiftyone_regioncap.evaluation.masks`) are means over the frames without a prompt,
then over a clip's objects and starts, then over clips. AUC is the chance that the score
of a mask of J > 0.7 is higher than that of one of J < 0.3. The time is the process's on
its processors, in the propagator alone.

``--synthetic`` makes clips of each clip with one object: a ``look-alike`` beside it (a
mirrored copy that comes near and parts again), a ``crossing`` (the mirrored frame's
object moves over it), and an ``entry`` (the view is cut so that it enters as a sliver).

``--encodings DIR`` keeps encodings of whole frames there, and cuts parts out of them:
ideas on memory and decoder are then measured in a fourth of the time, J within .002 of
what is encoded anew. Times mean nothing with it.

``--corrections`` prompts each object wrongly (its mask, moved by its own size) and then
rightly, and compares J from there on with runs that were prompted rightly twice, and
once.

``--overlays DIR`` writes a picture of each clip and start there, in a folder of the
propagator and the kind of prompt: all frames with the masks filled in, the outlines of
the true ones, and J of each object.

Three baselines run on the same clips: ``still`` keeps the first mask where it is,
``flow-only`` moves it along the optical flow, ``reprompt`` gives MobileSAM the box of
the last mask on each frame.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fiftyone_regioncap.core.types import Frame, Mask, ObjectMask, Prompt, box_of_mask
from fiftyone_regioncap.evaluation.masks import contour_accuracy, region_similarity
from fiftyone_regioncap.models.registry import ModelSpec
from fiftyone_regioncap.propagation.base import (
    PropagationRequest,
    Propagator,
    PropagatorInfo,
)
from fiftyone_regioncap.propagation.flow import FlowTracker
from fiftyone_regioncap.propagation.mobilesam.configuration import WEIGHTS
from fiftyone_regioncap.propagation.mobilesam.segmenter import (
    INPUT_SIDE,
    Encoding,
    Grid,
    MobileSam,
    Part,
    half_is_fast,
)
from fiftyone_regioncap.propagation.mobilesam.tinyvit import CHANNELS
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.propagation.stream import StreamPropagation, Tracker
from fiftyone_regioncap.system import assets

_SIDE = 768


@dataclass(frozen=True)
class Clip:
    """A clip in memory; small ones only, so that reading isn't measured.

    Attributes:
        name: Name of its folder.
        frames: Frames, each uint8 (H, W, 3) RGB.
        masks: Masks by frame, each uint8 (H, W), 0 for background, n for object n.
        human: Whether people drew the masks.
        kind: ``"real"`` or how it was made.
    """

    name: str
    frames: Sequence[Frame]
    masks: Sequence[NDArray[np.uint8]]
    human: bool
    kind: str = "real"

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
        """Height of every frame, in pixels."""
        return self.frames[0].shape[0]

    @property
    def width(self) -> int:
        """Width of every frame, in pixels."""
        return self.frames[0].shape[1]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Frame:
        return self.frames[index]

    def prompts(self, kind: str, start: int = 0) -> list[Prompt]:
        """Makes one prompt for each object, on the first frame that shows it.

        Of a synthetic clip only the first object is prompted: the other is to distract.

        Args:
            kind: Kind of the prompts, ``"mask"`` or ``"box"``.
            start: First frame to consider, 0-based; 0 by default.
        """
        first: dict[int, int] = {}
        for index in range(start, len(self)):
            for object_id in np.unique(self.masks[index]).tolist():
                if 0 < object_id < 255:  # 255 marks pixels to ignore
                    first.setdefault(object_id, index)
        if self.kind != "real":
            first = {1: first[1]}
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
        """Returns the masks."""
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
            half = half_is_fast(self._model.device)
            decoded = self._model.decode(
                self._model.encode(frame, side=_SIDE, half=half),
                Grid(*frame.shape[:2], _SIDE),
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


def look_alike(clip: Clip) -> Clip:
    """Adds a mirrored copy beside the object, behind it where they meet."""
    objects = [mask == 1 for mask in clip.masks]
    boxes = [box_of_mask(mask) for mask in objects]
    seen = [box for box in boxes if box is not None]
    width = float(np.median([x2 - x1 for x1, _, x2, _ in seen]))
    middle = np.mean([(x1 + x2) / 2 for x1, _, x2, _ in seen])
    side = 1 if middle < clip.width / 2 else -1
    frames, masks = [], []
    for n, (frame, on, box) in enumerate(zip(clip.frames, objects, boxes, strict=True)):
        mask, frame = on.astype(np.uint8), frame.copy()
        if box is not None:
            away = width * (0.8 + 0.5 * np.cos(2 * np.pi * n / 30))
            mirror = np.array([[-1, 0, box[0] + box[2] + side * away], [0, 1, 0]])
            size = (clip.width, clip.height)
            copied = (cv2.warpAffine(mask, mirror, size) > 0) & ~on
            frame[copied] = cv2.warpAffine(frame, mirror, size)[copied]
            mask[copied] = 2
        frames.append(frame)
        masks.append(mask)
    return replace(
        clip, name=f"{clip.name}/twin", frames=frames, masks=masks, kind="look-alike"
    )


def crossing(clip: Clip) -> Clip:
    """Adds the object of the mirrored frames, in front of the object."""
    frames, masks = [], []
    for frame, mask in zip(clip.frames, clip.masks, strict=True):
        other = (mask == 1)[:, ::-1]
        frames.append(np.where(other[..., None], frame[:, ::-1], frame))
        masks.append(np.where(other, 2, mask == 1).astype(np.uint8))
    return replace(
        clip, name=f"{clip.name}/cross", frames=frames, masks=masks, kind="crossing"
    )


def entry(clip: Clip) -> Clip:
    """Cuts the view so that the object enters from its edge within ten frames."""
    boxes = [box_of_mask(mask == 1) for mask in clip.masks]
    width = clip.width * 2 // 3
    frames, masks = [], []
    for n, (frame, mask) in enumerate(zip(clip.frames, clip.masks, strict=True)):
        x1, _, x2, _ = boxes[n] or (0, 0, 0, 0)
        inside = min(0.06 + 0.1 * n, 1.0)  # share of the object in the view
        left = round(min(max(x1 + inside * (x2 - x1) - width, 0), clip.width - width))
        frames.append(np.ascontiguousarray(frame[:, left : left + width]))
        masks.append((mask[:, left : left + width] == 1).astype(np.uint8))
    return replace(
        clip, name=f"{clip.name}/entry", frames=frames, masks=masks, kind="entry"
    )


def keep_encodings(folder: Path) -> None:
    """Lets MobileSAM take encodings from a folder that it fills.

    Args:
        folder: Folder of one file a frame and size; made if it isn't there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    encode = MobileSam.encode_stages

    def kept(
        self: MobileSam,
        frame: Frame,
        *,
        side: int = INPUT_SIDE,
        padded: bool = False,
        half: bool = False,
        part: Part | None = None,
    ) -> Encoding:
        digest = hashlib.sha256(frame.tobytes())
        digest.update(repr((frame.shape, side, padded, half)).encode())
        file = folder / f"{digest.hexdigest()}.npy"
        if not file.exists():
            whole = encode(self, frame, side=side, padded=padded, half=half)
            stored = torch.cat([whole.embedding, whole.stage]).half().numpy()
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as temporary:
                np.save(temporary, stored)
            os.replace(temporary.name, file)
        both = torch.from_numpy(np.load(file)).float()
        part = part or Grid(*frame.shape[:2], side).whole
        if not padded:
            rows, columns = part.slices()
            both = both[:, rows, columns]
        return Encoding(both[:CHANNELS], both[CHANNELS:], part)

    MobileSam.encode_stages = kept  # type: ignore[method-assign]


@dataclass(frozen=True)
class Result:
    """Results of one propagator on one clip; N counts pairs of object and frame.

    Attributes:
        tracks: Track numbers, int (N,), one for each object from each start.
        j: Region similarity J, float (N,).
        f: Contour accuracy F, float (N,).
        scores: The propagator's own scores, float (N,).
        milliseconds: Processor time per frame in milliseconds.
    """

    tracks: NDArray[np.int64]
    j: NDArray[np.float64]
    f: NDArray[np.float64]
    scores: NDArray[np.float64]
    milliseconds: float

    def mean(self, values: NDArray[np.float64]) -> float:
        """Averages over the frames of each track, then over tracks."""
        ids = np.unique(self.tracks)
        return float(np.mean([values[self.tracks == k].mean() for k in ids]))


def save_overlays(
    file: Path, clip: Clip, found: Mapping[int, NDArray[np.uint8]], columns: int = 5
) -> None:
    """Writes found and true masks of a run's frames as one picture.

    Args:
        file: File to write.
        clip: Clip with masks on all frames.
        found: Found masks by frame, each uint8 (H, W), 0 for background, n for object
            n. They are filled in; the true ones are outlined in green.
        columns: Number of frames side by side.
    """
    tiles = []
    for index, masks in sorted(found.items()):
        tile, told = clip[index].copy(), []
        for n in np.unique(masks[masks > 0]).tolist():
            shade = np.array([[37 * n % 256]], dtype=np.uint8)
            color = cv2.applyColorMap(shade, cv2.COLORMAP_HSV)[0, 0]
            mask, true = masks == n, clip.masks[index] == n
            tile[mask] = tile[mask] // 2 + color // 2
            outlines, _ = cv2.findContours(
                true.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(tile, outlines, -1, (0, 255, 0), 1)
            told.append(f"{region_similarity(mask, true):.2f}")
        size = (427, round(427 * clip.height / clip.width))
        tile = cv2.resize(tile, size, interpolation=cv2.INTER_AREA)
        text = f"{index}: {' '.join(told)}"
        tiles.append(cv2.putText(tile, text, (5, 15), 0, 0.5, (255, 255, 255), 1))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[n : n + columns]) for n in range(0, len(tiles), columns)]
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(file)


def measure(
    propagator: Propagator,
    clip: Clip,
    kind: str,
    starts: Sequence[float],
    overlays: Path | None = None,
) -> Result:
    """Runs a propagator over a clip and compares with the masks.

    Args:
        propagator: A :class:`~fiftyone_regioncap.propagation.base.Propagator`.
        clip: Clip with masks on all frames.
        kind: Kind of the prompts, ``"mask"`` or ``"box"``.
        starts: Positions of the prompts, as shares of the clip.
        overlays: Path of the pictures without the number of the start and suffix; None
            to draw none.
    """
    rows = []
    seconds, count = 0.0, 0
    for number, share in enumerate(starts):
        prompts = clip.prompts(kind, int(share * len(clip)))
        request = PropagationRequest(
            clip, prompts, direction="both" if share else "forward"
        )
        run = propagator.propagate(request)
        drawn: dict[int, NDArray[np.uint8]] = {}
        while True:
            before = time.process_time()
            masks = next(run, None)
            seconds += time.process_time() - before
            if masks is None:
                break
            count += 1
            sheet = drawn.setdefault(masks.frame, np.zeros_like(clip.masks[0]))
            for object_id, found in masks.objects.items():
                if found.mask is not None:
                    sheet[found.mask] = object_id
                if object_id in masks.prompted:
                    continue
                truth = clip.masks[masks.frame] == object_id
                mask = np.zeros_like(truth) if found.mask is None else found.mask
                j, f = region_similarity(mask, truth), contour_accuracy(mask, truth)
                rows.append((1000 * number + object_id, j, f, found.score))
        if overlays is not None:
            save_overlays(
                overlays.with_name(f"{overlays.name}-{number}.png"), clip, drawn
            )
    tracks, j, f, scores = (np.array(column) for column in zip(*rows, strict=True))
    return Result(tracks, j, f, scores, 1000 * seconds / count)


def _masks(folder: Path) -> list[Path]:
    return [file for file in (folder / "masks").iterdir() if file.suffix == ".png"]


def _calibration(results: Sequence[Result]) -> str:
    """Summarizes how well scores separate wrong masks from right ones."""
    j = np.concatenate([result.j for result in results])
    scores = np.concatenate([result.scores for result in results])
    cells = [
        f"{scores[where].mean():.2f} ({where.sum()})" if where.any() else "- (0)"
        for where in (j < 0.3, (j >= 0.3) & (j <= 0.7), j > 0.7)
    ]
    wrong, right = scores[j < 0.3], scores[j > 0.7][:, None]
    auc = np.mean((right > wrong) + 0.5 * (right == wrong)) if wrong.size else np.nan
    return (
        f"score where J < 0.3: {cells[0]}, between: {cells[1]}, > 0.7: {cells[2]}; "
        f"AUC {auc:.3f}, correlation with J {np.corrcoef(j, scores)[0, 1]:.2f}"
    )


def correct(propagator: Propagator, clip: Clip) -> dict[str, float]:
    """Measures J after a second prompt, by what the first one was.

    Args:
        propagator: The propagator.
        clip: Clip with masks on all frames.

    Returns:
        Mean J over the objects and the frames after a right prompt at a third of the
        clip, with a wrong or right prompt at its start, or none.
    """
    second = len(clip) // 3
    found: dict[str, list[float]] = {"wrong": [], "right": [], "none": []}
    for right in clip.prompts("mask"):
        again = clip.masks[second] == right.object_id
        assert right.mask is not None
        box = box_of_mask(right.mask)
        if right.frame >= second or not again.any() or box is None:
            continue
        # Toward the middle, so that the moved mask is in the frame.
        left, _, over, _ = box
        aside = round(over - left) * (1 if left + over < clip.width else -1)
        wrong = np.roll(right.mask, aside, axis=1)
        later = Prompt(right.object_id, second, mask=again)
        runs = {
            "wrong": [replace(right, mask=wrong), later],
            "right": [right, later],
            "none": [later],
        }
        for name, prompts in runs.items():
            j = [
                region_similarity(
                    np.zeros_like(again) if mask is None else mask,
                    clip.masks[result.frame] == right.object_id,
                )
                for result in propagator.propagate(PropagationRequest(clip, prompts))
                if result.frame > second
                for mask in [result.objects[right.object_id].mask]
            ]
            found[name].append(float(np.mean(j)))
    return {name: float(np.mean(j)) for name, j in found.items() if j}


def cost(propagator: Propagator, clip: Clip, objects: int, frames: int = 12) -> float:
    """Measures processor time per frame, in milliseconds, of following some boxes.

    Args:
        propagator: A :class:`~fiftyone_regioncap.propagation.base.Propagator`.
        clip: Clip whose first frames are used.
        objects: Number of boxes, in a grid over the frame.
        frames: Number of frames, 12 by default; the first half warms up.
    """
    columns = -(-objects // 2)
    width, height = clip.width / columns, clip.height / 2
    prompts = []
    for n in range(objects):
        x, y = (n % columns) * width, (n // columns) * height
        mask = np.zeros((clip.height, clip.width), dtype=bool)
        mask[int(y + 0.1 * height) : int(y + 0.8 * height),
             int(x + 0.1 * width) : int(x + min(0.7 * width, 200))] = True  # fmt: skip
        prompts.append(Prompt(n + 1, 0, mask=mask))
    stop = min(frames, len(clip))
    run = propagator.propagate(PropagationRequest(clip, prompts, stop=stop))
    times = []
    for _ in range(stop):
        before = time.process_time()
        next(run)
        times.append(1000 * (time.process_time() - before))
    return float(np.median(times[stop // 2 :]))


@click.command(help=__doc__.split("\n")[0])
@click.argument("clips", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--propagators",
    default="mobilesam",
    help="Names, with commas between, or none; mobilesam:fast names a preset.",
)
@click.option(
    "--prompts", default="mask,box", help="Kinds, with commas between, or none."
)
@click.option("--starts", default="0,0.5", help="Where prompts are, as shares.")
@click.option("--baselines/--no-baselines", default=True)
@click.option("--only", default="", help="Names of clips, with commas between.")
@click.option("--synthetic/--no-synthetic", default=False, help="Also clips made here.")
@click.option(
    "--encodings",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps encodings between runs.",
)
@click.option(
    "--overlays",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for pictures of the masks.",
)
@click.option("--corrections/--no-corrections", default=False)
@click.option("--costs", default="", help="Object counts to time, such as 1,8.")
def main(
    clips: Path | None,
    propagators: str,
    prompts: str,
    starts: str,
    baselines: bool,
    only: str,
    synthetic: bool,
    encodings: Path | None,
    overlays: Path | None,
    corrections: bool,
    costs: str,
) -> None:
    """Prints the tables."""
    if encodings is not None:
        keep_encodings(encodings)
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
    if synthetic:
        single = [clip for clip in loaded if clip.human and clip.masks[0].max() == 1]
        loaded += [
            make(clip) for make in (look_alike, crossing, entry) for clip in single
        ]
    rivals: dict[str, Propagator] = {}
    if baselines:
        model = MobileSam.from_pretrained(assets.fetch(WEIGHTS))
        rivals = {
            "still": Baseline("still", StillTracker),
            "flow-only": Baseline(
                "flow-only", lambda: FlowTracker(overlap=False, sharpen=False)
            ),
            "reprompt": Baseline("reprompt", lambda: RepromptTracker(model)),
        }
    for named in filter(None, propagators.split(",")):
        name, _, preset = named.partition(":")
        options = {"preset": preset} if preset else {}
        rivals[named], _ = PROPAGATORS.load(ModelSpec(name, options=options))
    for count in map(int, filter(None, costs.split(","))):
        for name, propagator in rivals.items():
            spent = cost(propagator, loaded[0], count)
            click.echo(f"{name}: {count} objects, {spent:.0f} ms a frame")
    if corrections:
        for name, propagator in rivals.items():
            click.echo(f"{name}, J after a right prompt, by the prompt before it")
            for clip in loaded:
                after = correct(propagator, clip)
                told = ", ".join(f"{kind} {j:.3f}" for kind, j in after.items())
                click.echo(f"  {clip.name:26} {told}")
    shares = [float(share) for share in starts.split(",")]
    for kind in filter(None, prompts.split(",")):
        for name, propagator in rivals.items():
            folder = overlays and overlays / f"{name}-{kind}".replace(":", "-")
            results = [
                measure(propagator, clip, kind, shares, folder and folder / clip.name)
                for clip in loaded
            ]
            click.echo(f"{name}, prompted by {kind}")
            for clip, r in zip(loaded, results, strict=True):
                mark = "" if clip.human else " (masks by a model, not in the mean)"
                click.echo(
                    f"  {clip.name:26} J {r.mean(r.j):.3f} F {r.mean(r.f):.3f} "
                    f"{r.milliseconds:6.0f} ms a frame{mark}"
                )
            for made in dict.fromkeys(clip.kind for clip in loaded):
                chosen = [
                    r
                    for clip, r in zip(loaded, results, strict=True)
                    if clip.kind == made and (clip.human or len(loaded) == 1)
                ]
                j, f = (
                    np.mean([r.mean(getattr(r, field)) for r in chosen])
                    for field in ("j", "f")
                )
                click.echo(f"  mean of {made:18} J {j:.3f} F {f:.3f}")
                click.echo(f"  {_calibration(chosen)}")


if __name__ == "__main__":
    main()
