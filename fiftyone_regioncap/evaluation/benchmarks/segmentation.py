"""Masks of videos: DAVIS, MOSE, SA-V and YouTube-VIS by J, F, HOTA and IDF1.

The objects are marked by their masks on the first frame they are annotated on; a
propagator carries them on. Annotations and predictions are folders of PNG files, one a
frame with object ids as values or one an object and frame; or YouTube-VIS' JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fiftyone_regioncap.core.types import Mask, Prompt
from fiftyone_regioncap.evaluation.benchmarks.base import (
    Answer,
    Benchmark,
    File,
    Item,
    Scores,
    Tools,
)
from fiftyone_regioncap.evaluation.benchmarks.media import find_media
from fiftyone_regioncap.evaluation.benchmarks.metrics import mean
from fiftyone_regioncap.evaluation.benchmarks.predictions import Predictions
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    find,
    read_json,
    read_segmentation,
)
from fiftyone_regioncap.evaluation.masks import contour_accuracy, region_similarity
from fiftyone_regioncap.evaluation.tracking import TrackingScores
from fiftyone_regioncap.propagation.base import PropagationRequest, Propagator
from fiftyone_regioncap.video.reader import VideoReader


@dataclass(frozen=True)
class VideoMasks:
    """The masks of a video, read when they are asked for.

    Attributes:
        frames: Names of the annotated frames, without suffix, in order.
        files: Files by frame and object; object 0 is a file of all objects' ids.
        runs: COCO masks by frame and object.
    """

    frames: tuple[str, ...]
    files: Mapping[str, Mapping[int, Path]]
    runs: Mapping[str, Mapping[int, Any]]

    def read(self, frame: str) -> dict[int, Mask]:
        """Returns the masks of a frame that aren't empty, bool (H, W), by object."""
        found: dict[int, Mask] = {}
        for index, path in self.files.get(frame, {}).items():
            with Image.open(path) as image:
                values = np.asarray(image)
            if values.ndim != 2:
                raise BenchmarkError(
                    f"{path} has no object ids: it is no palette image"
                )
            if index:
                found[index] = values > 0
            else:
                found |= {int(i): values == i for i in np.unique(values) if i}
        for index, mask in self.runs.get(frame, {}).items():
            if mask is not None:
                found[index] = read_segmentation(mask, *mask["size"])
        return {index: mask for index, mask in found.items() if mask.any()}


def read_masks(folder: Path) -> VideoMasks:
    """Finds the PNG files of a video: its frames, or a folder of frames an object."""
    files: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.rglob("*.png")):
        parent = path.parent.name
        index = 0
        if path.parent != folder:
            if not parent.isdigit():
                raise BenchmarkError(f"{path.parent} is no number of an object")
            index = int(parent) + 1
        files.setdefault(path.stem, {})[index] = path
    return VideoMasks(tuple(sorted(files)), files, {})


def load_folders(folder: Path, layouts: Sequence[str]) -> Iterator[Item]:
    """Reads the videos of a folder of annotations, those of a split if it is there."""
    root = next((folder / name for name in layouts if (folder / name).is_dir()), None)
    if root is None:
        raise BenchmarkError(f"{folder} has no folder {' or '.join(layouts)}")
    split = sorted(folder.glob("ImageSets/**/val.txt")) or sorted(folder.glob("*.txt"))
    names = split[0].read_text(encoding="utf-8").split() if split else None
    for path in sorted(one for one in root.iterdir() if one.is_dir()):
        if names is None or path.name in names:
            yield Item(path.name, path.name, values={"masks": read_masks(path)})


def load_json(folder: Path) -> Iterator[Item]:
    """Reads the videos of a YouTube-VIS file."""
    document = read_json(find(folder, "*instances*.json"))
    try:
        names = {v["id"]: tuple(v["file_names"]) for v in document["videos"]}
        masks = _of_json(document["annotations"], names)
    except (KeyError, TypeError) as error:
        raise BenchmarkError(
            f"{folder} has no file of YouTube-VIS: {error!r}"
        ) from error
    for video, frames in names.items():
        media = str(Path(frames[0]).parent)
        yield Item(str(video), media, values={"masks": masks[video], "names": names})


def _of_json(
    entries: Iterable[Mapping[str, Any]], names: Mapping[Any, Sequence[str]]
) -> dict[Any, VideoMasks]:
    """Returns the masks of a list of tracks by video."""
    frames = {v: tuple(Path(name).stem for name in own) for v, own in names.items()}
    runs: dict[Any, dict[str, dict[int, Any]]] = {v: {} for v in names}
    tracks: Counter[Any] = Counter()
    for place, entry in enumerate(entries, 1):
        own = runs.get(entry["video_id"])
        if own is None:
            raise BenchmarkError(f"track {place} is of no video of the file")
        tracks[entry["video_id"]] += 1
        number = tracks[entry["video_id"]]
        stems = frames[entry["video_id"]]
        for stem, mask in zip(stems, entry["segmentations"], strict=True):
            own.setdefault(stem, {})[number] = mask
    return {video: VideoMasks(frames[video], {}, own) for video, own in runs.items()}


def pair(
    predictions: Predictions, items: Iterable[Item], path: Path, **how: Any
) -> Iterator[Answer]:
    """Pairs videos with predicted masks.

    Args:
        predictions: Notes problems.
        items: The videos.
        path: Folder with a folder of PNG files a video, or a YouTube-VIS results file.
        **how: ``whole``: whether these are all videos.
    """
    listed = None
    known = set()
    for item in items:
        if path.is_file():
            listed = listed or _of_json(read_json(path), item.values["names"])
            found = next(m for v, m in listed.items() if str(v) == item.id)
        else:
            found = read_masks(path / item.id)
        known.add(item.id)
        empty = not (found.files or found.runs)
        if empty:
            predictions.problems.add("missing", item.id)
        yield Answer(item, found, missing=empty)
    if how["whole"] and path.is_dir():
        for one in sorted(path.iterdir()):
            if one.is_dir() and one.name not in known:
                predictions.problems.add("unknown", one.name)


def score(answers: Iterable[Answer], tools: Tools, inner: bool = True) -> Scores:
    """Computes J and F of each object, and HOTA and IDF1 of all videos together.

    Args:
        answers: Videos with predicted masks.
        tools: Not needed.
        inner: Whether J and F leave the first and the last frame out, as DAVIS does.
    """
    tracking, each, objects = TrackingScores(), {}, []
    for one in answers:
        truth: VideoMasks = one.item.values["masks"]
        said = VideoMasks((), {}, {}) if one.missing else one.prediction
        ids = sorted({index for frame in truth.frames for index in truth.read(frame)})
        scores: dict[int, list[tuple[float, float]]] = {index: [] for index in ids}
        overlaps = []
        matched = _same_ids(truth, said)
        for number, frame in enumerate(truth.frames):
            true, guess = truth.read(frame), said.read(frame)
            table = [[_iou(a, b) for b in guess.values()] for a in true.values()]
            ious = np.array(table, float).reshape(len(true), len(guess))
            overlaps.append(([*true], [*guess], ious))
            if inner and number in (0, len(truth.frames) - 1):
                continue
            for index, own in scores.items():
                other = guess.get(matched.get(index, index))
                own.append(_both(true.get(index), other))
        tracking.add(overlaps)
        found = [np.mean(own, axis=0) for own in scores.values() if own]
        objects += found
        each[one.item.id] = float(np.mean(found)) if found else 0.0
    j, f = (mean(float(o[n]) for o in objects) for n in (0, 1))
    overall = {"j_and_f": (j + f) / 2, "j": j, "f": f, **tracking.result()}
    return Scores(overall, each, {"objects": len(objects)})


def _same_ids(truth: VideoMasks, said: VideoMasks) -> dict[int, int]:
    """Assigns predicted tracks to true ones where ids mean nothing, as in JSON."""
    if not said.runs:
        return {}
    from scipy.optimize import linear_sum_assignment

    sums: dict[tuple[int, int], float] = {}
    for frame in truth.frames:
        guess = said.read(frame)
        for index, mask in truth.read(frame).items():
            for other, own in guess.items():
                sums[index, other] = sums.get((index, other), 0.0) + _iou(mask, own)
    rows = sorted({index for index, _ in sums})
    columns = sorted({other for _, other in sums})
    table = np.array([[sums.get((r, c), 0.0) for c in columns] for r in rows])
    if not table.size:
        return dict.fromkeys({i for f in truth.frames for i in truth.read(f)}, -1)
    pairs = zip(*linear_sum_assignment(-table), strict=True)
    return {rows[r]: columns[c] for r, c in pairs}


def _iou(one: Mask, other: Mask) -> float:
    _check(one, other)
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 0.0


def _both(truth: Mask | None, said: Mask | None) -> tuple[float, float]:
    """Returns J and F of an object on a frame; no mask is right where it isn't."""
    if truth is None or said is None:
        same = float(truth is None and said is None)
        return same, same
    _check(truth, said)
    return region_similarity(said, truth), contour_accuracy(said, truth)


def _check(one: Mask, other: Mask) -> None:
    if one.shape != other.shape:
        raise BenchmarkError(
            f"a predicted mask is {other.shape[1]}x{other.shape[0]}, the annotated one "
            f"{one.shape[1]}x{one.shape[0]}; predict at the size of the annotations"
        )


def propagate(
    propagator: Propagator, items: Iterable[Item], media: Path, output: Path
) -> Iterator[str]:
    """Carries the objects of videos on, and writes their masks as PNG files.

    Args:
        propagator: The propagator.
        items: The videos; those whose files are all there are passed over.
        media: Folder of the videos' frames.
        output: Folder that a folder a video is written into.

    Yields:
        The id of each video when it is done.
    """
    for item in items:
        truth: VideoMasks = item.values["masks"]
        folder = output / item.id
        done = {path.stem for path in folder.glob("*.png")}
        if not set(truth.frames) <= done:
            with VideoReader(_frames_of(media, item)) as reader:
                names = _names(Path(reader.path)) or list(truth.frames)
                request = PropagationRequest(reader, _prompts(truth, names))
                last = max(prompt.object_id for prompt in request.prompts)
                kind = np.min_scalar_type(last)  # of PNG: 8 bits, or 16
                folder.mkdir(parents=True, exist_ok=True)
                for found in propagator.propagate(request):
                    values = np.zeros((reader.height, reader.width), kind)
                    for index, one in found.objects.items():
                        if one.mask is not None:
                            values[one.mask] = index
                    partial_ = folder / f"{names[found.frame]}.part"
                    Image.fromarray(values).save(partial_, "PNG")
                    partial_.replace(partial_.with_suffix(".png"))
            first = np.zeros_like(values)
            for name in truth.frames:  # before an object's first frame there is none
                path = folder / f"{name}.png"
                if not path.exists():
                    Image.fromarray(first).save(path)
        yield item.id


def _frames_of(media: Path, item: Item) -> Path:
    for name in ("JPEGImages/480p", "JPEGImages", "JPEGImages_24fps", "."):
        path = media / name / item.media
        if path.is_dir():
            return path
    return find_media(media, item.media)


def _names(path: Path) -> list[str]:
    """Returns the names of a folder's frames, without suffix, as they are numbered."""
    if not path.is_dir():
        return []
    return [file.stem for file in sorted(path.iterdir()) if not file.is_dir()]


def _prompts(truth: VideoMasks, names: Sequence[str]) -> list[Prompt]:
    """Marks each object by its mask on the first frame that it is annotated on."""
    places = {name: number for number, name in enumerate(names)}
    prompts: dict[int, Prompt] = {}
    for frame in truth.frames:
        for index, mask in truth.read(frame).items():
            if index not in prompts and frame in places:
                prompts[index] = Prompt(index, places[frame], mask=mask)
    return list(prompts.values())


def _declare(name: str, title: str, **own: Any) -> Benchmark:
    return Benchmark(
        **{
            "name": name,
            "title": title,
            "summary": "Carries objects through a video, from their first mask.",
            "unit": "video",
            "score": score,
            "metric": "J and F of masks; HOTA and IDF1 of tracks.",
            "pair": pair,
            "propagate": propagate,
            **own,
        }
    )


DAVIS = _declare(
    "davis",
    "DAVIS 2017 val",
    size="30 videos, 61 objects",
    license="CC BY-NC 4.0",
    files=(
        File(
            "Annotations/480p/*/*.png", "davischallenge.org, DAVIS 2017 trainval 480p"
        ),
        File("ImageSets/2017/val.txt", "the same archive", optional=True),
    ),
    load=partial(load_folders, layouts=("Annotations/480p", "Annotations")),
)
MOSE = _declare(
    "mose",
    "MOSE val",
    size="311 videos; annotations of val are on its server, those of train public",
    license="CC BY-NC-SA 4.0",
    files=(File("Annotations/*/*.png", "henghuiding.github.io/MOSE"),),
    load=partial(load_folders, layouts=("Annotations",)),
)
SA_V = _declare(
    "sa-v",
    "SA-V val and test",
    size="155 videos, 293 objects (val); 150 videos, 278 objects (test)",
    license="CC BY 4.0",
    files=(
        File(
            "Annotations_6fps/*/*/*.png", "ai.meta.com/datasets/segment-anything-video"
        ),
    ),
    load=partial(load_folders, layouts=("Annotations_6fps", "Annotations")),
    traps=("Our runs write one image a frame, where objects can't overlap.",),
)
YOUTUBE_VIS = _declare(
    "youtube-vis",
    "YouTube-VIS",
    size="302 videos (2019 val), 421 (2021 val)",
    license="CC BY 4.0 annotations; videos under YouTube's terms",
    files=(File("*instances*.json", "youtube-vos.org/dataset/vis"),),
    load=load_json,
    score=partial(score, inner=False),
    traps=(
        "Its own metric is AP of detected tracks; here objects are marked. Predicted "
        "tracks of a results file are assigned to true ones by their overlap.",
    ),
)
