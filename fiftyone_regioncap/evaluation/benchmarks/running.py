"""Prepares, runs and scores benchmarks: what the shell, the SDK and the App do."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.captioning.streaming import caption_stream
from fiftyone_regioncap.core.errors import OptionError, RegionCapError
from fiftyone_regioncap.core.options import fields_of
from fiftyone_regioncap.core.progress import ProgressListener, ProgressReporter
from fiftyone_regioncap.core.types import Caption, RegionClip, box_of_mask
from fiftyone_regioncap.evaluation.benchmarks import datasets
from fiftyone_regioncap.evaluation.benchmarks.base import (
    Benchmark,
    Item,
    Tools,
)
from fiftyone_regioncap.evaluation.benchmarks.judges import open_judge
from fiftyone_regioncap.evaluation.benchmarks.media import (
    find_media,
    is_image,
    open_image,
)
from fiftyone_regioncap.evaluation.benchmarks.options import (
    BenchmarkOptions,
    PrepareOptions,
    RunOptions,
    ScoreOptions,
)
from fiftyone_regioncap.evaluation.benchmarks.reading import (
    BenchmarkError,
    read_object,
    read_records,
)
from fiftyone_regioncap.evaluation.benchmarks.registry import BENCHMARKS
from fiftyone_regioncap.evaluation.benchmarks.report import BenchmarkReport
from fiftyone_regioncap.evaluation.benchmarks.scoring import checksums_of, score_file
from fiftyone_regioncap.jobs.base import model_facts
from fiftyone_regioncap.models.registry import AUTO, ModelSpec
from fiftyone_regioncap.propagation.base import Propagator
from fiftyone_regioncap.propagation.registry import PROPAGATORS
from fiftyone_regioncap.search import embedding
from fiftyone_regioncap.system import assets
from fiftyone_regioncap.video.reader import VideoReader
from fiftyone_regioncap.video.sampling import sample_frames

PREDICTIONS = "predictions.jsonl"


def prepare_benchmark(options: PrepareOptions, **_: Any) -> datasets.PreparedBenchmark:
    """Makes a dataset of a benchmark's files.

    Args:
        options: Which benchmark, and where its files are.
        **_: A listener and an event, which aren't needed.

    Raises:
        BenchmarkError: If a file is missing or not what it should be.
        FieldError: If there is another dataset of this name.
    """
    benchmark = BENCHMARKS[options.benchmark]
    folder = _folder(options.folder)
    return datasets.prepare(
        benchmark,
        folder,
        folder if options.media is None else _folder(options.media),
        name=options.dataset,
        checksums=checksums_of(benchmark, folder),
        limit=options.limit,
        overwrite=options.overwrite,
    )


def score_benchmark(options: ScoreOptions, **_: Any) -> BenchmarkReport:
    """Scores a file of predictions, and keeps the result with the dataset.

    Args:
        options: Which benchmark, and where the predictions are.
        **_: A listener and an event, which aren't needed.

    Raises:
        BenchmarkError: If a file is missing or not what it should be.
        BackendError: If the judge, or a metric's package, isn't there.
    """
    place = _Place.of(options)
    captions = Path(options.captions)
    method = options.method or captions.stem
    return _score(place, options, captions, options.key or method, method, {})


def run_benchmark(
    options: RunOptions,
    captioner: Captioner | ModelSpec,
    propagator: Propagator | ModelSpec | None = None,
    listener: ProgressListener | None = None,
    cancel: threading.Event | None = None,
) -> BenchmarkReport:
    """Lets a captioner answer a benchmark, scores it, and keeps the result.

    Predictions are written line by line; what is there already is not asked again.

    Args:
        options: Which benchmark, and how the captioner is prompted.
        captioner: The captioner, or its specification.
        propagator: The propagator, for benchmarks of masks, or its specification.
        listener: Called with progress events.
        cancel: Set it to stop after the prediction at hand.

    Raises:
        BenchmarkError: If a file is missing or not what it should be.
        BackendError: If the captioner, the judge or a metric's package isn't there.
        Canceled: If ``cancel`` was set; predictions so far stay.
    """
    place = _Place.of(options)
    benchmark = place.benchmark
    if benchmark.propagate is not None:
        return _run_masks(place, options, propagator, listener, cancel)
    captioner = _with_protocol(captioner, benchmark)
    made = CAPTIONERS.obtain(captioner, [])
    key = options.key or made.info.name
    output = _output(options, key)
    prompt = _prompt(options, benchmark, made)
    settings = {
        "captioner": made.info.name,
        "model": made.info.model,
        "revision": made.info.revision,
        "options": dict(captioner.public().options)
        if isinstance(captioner, ModelSpec)
        else {},
        "prompt": prompt,
        "window": options.window,
        "baseline": options.baseline,
        "checksums": checksums_of(benchmark, place.folder),
    }
    predictions = output / PREDICTIONS
    done = _resume(predictions, settings, options.overwrite)
    _predict(place, options, made, prompt, predictions, done, listener, cancel)
    method = made.info.name
    if made.info.model != method:
        method = f"{method} ({Path(made.info.model).name})"
    return _score(place, options, predictions, key, method, settings)


def _run_masks(
    place: _Place,
    options: RunOptions,
    propagator: Propagator | ModelSpec | None,
    listener: ProgressListener | None,
    cancel: threading.Event | None,
) -> BenchmarkReport:
    """Lets a propagator carry the objects of a benchmark on, and scores the masks."""
    if propagator is None:
        raise OptionError(
            f"{place.benchmark.title} is of masks: name a propagator, such as mobilesam"
        )
    made = PROPAGATORS.obtain(propagator, [])
    key = options.key or made.info.name
    output = _output(options, key) / "predictions"
    facts = model_facts(made)
    settings = {
        "propagator": made.info.name,
        "model": made.info.model,
        "revision": made.info.revision,
        "options": facts.get("options", {}),
        "checksums": checksums_of(place.benchmark, place.folder),
    }
    _claim(output, settings, options.overwrite)
    items = list(islice(place.benchmark.load(place.folder), options.limit))
    progress = ProgressReporter(("propagate",), len(items), listener, cancel)
    assert place.benchmark.propagate is not None
    for video in place.benchmark.propagate(made, items, place.media, output):
        progress.check_canceled()
        progress.finish("propagate", video)
    return _score(place, options, output, key, made.info.name, settings)


class _Place:
    """A benchmark and where its files are."""

    def __init__(
        self, benchmark: Benchmark, folder: Path, media: Path, dataset: str | None
    ) -> None:
        self.benchmark = benchmark
        self.folder = folder
        self.media = media
        self.dataset = dataset

    @classmethod
    def of(cls, options: BenchmarkOptions) -> _Place:
        """Finds them: as given, else where the benchmark was prepared from.

        Raises:
            BenchmarkError: If nothing was given or prepared, or the files have changed.
        """
        benchmark = BENCHMARKS[options.benchmark]
        known = datasets.prepared(benchmark, options.dataset)
        if options.folder is not None:
            folder = _folder(options.folder)
            media = folder if options.media is None else _folder(options.media)
            dataset = None
            if known is not None and Path(known["folder"]) == folder:
                dataset = known["dataset"]
            return cls(benchmark, folder, media, dataset)
        if known is None:
            raise BenchmarkError(
                f"{benchmark.title} was not prepared here; give the folder of its "
                "files, or prepare it first ('Prepare a benchmark', or `regioncap "
                f"benchmark prepare {benchmark.name} --from FOLDER`)"
            )
        folder = Path(known["folder"])
        if checksums_of(benchmark, folder) != known["checksums"]:
            raise BenchmarkError(
                f"the files in {folder} are another version than the dataset "
                f"{known['dataset']} was prepared from (checksums differ); prepare it "
                "again with overwrite"
            )
        media = Path(options.media or known["media"])
        return cls(benchmark, folder, media, known["dataset"])


def _folder(path: str) -> Path:
    found = Path(path).expanduser().resolve()
    if not found.is_dir():
        raise BenchmarkError(f"{found} is no folder")
    return found


def _output(options: BenchmarkOptions, key: str) -> Path:
    if options.output is not None:
        return Path(options.output).expanduser()
    return assets.cache_dir() / "benchmarks" / options.benchmark / key


def _with_protocol(
    captioner: Captioner | ModelSpec, benchmark: Benchmark
) -> Captioner | ModelSpec:
    """Adds the options of generation that the benchmark states."""
    if not isinstance(captioner, ModelSpec) or captioner.name == AUTO:
        return captioner
    known = {field.name for field in fields_of(CAPTIONERS[captioner.name].options)}
    stated = {n: v for n, v in benchmark.generation.items() if n in known}
    return replace(captioner, options={**stated, **captioner.options})


def _prompt(
    options: RunOptions, benchmark: Benchmark, captioner: Captioner
) -> str | None:
    """Returns what the captioner is asked where an item has no question of its own."""
    if not captioner.info.prompts:
        if options.prompt is not None or benchmark.follows:
            raise OptionError(
                f"the captioner {captioner.info.name} takes no prompt"
                + f", which {benchmark.title} needs" * benchmark.follows
            )
        return None
    own = benchmark.prompts.get(captioner.info.name, benchmark.prompt)
    return options.prompt or own


def _resume(path: Path, settings: Mapping[str, Any], overwrite: bool) -> set[str]:
    """Returns the ids that were answered before, by the same captioner.

    Raises:
        BenchmarkError: If the predictions are of another one, or of other files.
    """
    _claim(path, settings, overwrite)
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1  # a kill may have cut the last line off
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    if not whole:
        return set()
    return {str(one["id"]) for one in read_records(path) if not one.get("error")}


def _claim(path: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Makes sure that predictions, a file or a folder, are of one model and its files.

    Raises:
        BenchmarkError: If they are of another one, or of other files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    record = path.with_name("run.json")
    plain = json.loads(json.dumps(settings, default=str))
    if overwrite and path.is_dir() and record.exists():
        shutil.rmtree(path)
    elif overwrite and path.is_file():
        path.unlink()
    elif path.exists() and record.exists():
        known = read_object(record)
        changed = [name for name in plain if known.get(name) != plain[name]]
        if changed:
            raise BenchmarkError(
                f"{path} holds predictions made with another {', '.join(changed)}; "
                "give another key or output, or overwrite them"
            )
    record.write_text(json.dumps(plain, indent=2), encoding="utf-8")


def _predict(
    place: _Place,
    options: RunOptions,
    captioner: Captioner,
    prompt: str | None,
    path: Path,
    done: set[str],
    listener: ProgressListener | None,
    cancel: threading.Event | None,
) -> None:
    """Asks the captioner for what is left, and adds it to the file line by line."""
    benchmark = place.benchmark

    def left() -> Iterator[Item]:
        items = islice(benchmark.load(place.folder), options.limit)
        return (item for item in items if item.id not in done)

    total = sum(1 for _ in left())
    if not total:
        return
    progress = ProgressReporter(("caption",), 1, listener, cancel)
    own = benchmark.describe.get(captioner.info.name)
    if own is None:
        answers = describe(
            captioner, left(), place.media, prompt, options.window, options.baseline
        )
    else:
        found = own(captioner, left(), place.media, options.baseline)
        answers = zip(left(), found, strict=True)
    began = time.monotonic()
    with path.open("a", encoding="utf-8") as file:
        for number, (item, caption) in enumerate(answers, 1):
            said: Any = caption.text
            if caption.error is None and benchmark.predict is not None:
                said = benchmark.predict(caption, item)
            line = {
                "id": item.id,
                "pred": said,
                "seconds": round(time.monotonic() - began, 3),
                **({} if item.prompt is None else {"prompt": item.prompt}),
                **({} if caption.error is None else {"error": caption.error}),
            }
            began = time.monotonic()
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            progress.update("caption", benchmark.name, number, total)


def describe(
    captioner: Captioner,
    items: Iterable[Item],
    media: Path,
    prompt: str | None = None,
    window: int | None = None,
    baseline: str | None = None,
) -> Iterator[tuple[Item, Caption]]:
    """Describes items, whose regions the captioner gets as masks.

    Args:
        captioner: The captioner.
        items: Items of a benchmark.
        media: Folder of the images or videos.
        prompt: What is asked where an item has no question of its own.
        window: Number of marked frames around the middle one that are shown of a
            video; None for all.
        baseline: ``"crop"`` or ``"image"`` to describe the region's box cut out, or the
            whole picture, in place of the region; None for the region.

    Yields:
        Each item with its caption, which has an error where it can't be described.
    """
    takes = bool(captioner.info.prompts)
    for question, group in groupby(items, key=lambda item: item.prompt or prompt):
        waiting: deque[tuple[Item, str | None]] = deque()

        def clips(
            own: Iterable[Item] = group,
            waiting: deque[tuple[Item, str | None]] = waiting,
        ) -> Iterator[RegionClip]:
            for item in own:
                try:
                    clip = _clip(item, media, captioner.info.frames, window)
                    clip = _instead(clip, baseline)
                except RegionCapError as error:
                    waiting.append((item, str(error)))
                else:
                    waiting.append((item, None))
                    yield clip

        asked = question if takes else None
        for caption in caption_stream(captioner, clips(), prompt=asked):
            yield from _bad(waiting)
            yield waiting.popleft()[0], caption
        yield from _bad(waiting)


def _bad(waiting: deque[tuple[Item, str | None]]) -> Iterator[tuple[Item, Caption]]:
    """Yields the first items that could not be shown."""
    while waiting and waiting[0][1] is not None:
        item, error = waiting.popleft()
        yield item, Caption(error=error)


def _clip(item: Item, media: Path, count: int, window: int | None) -> RegionClip:
    """Reads the frames of an item with its masks.

    Raises:
        RegionCapError: If the media is missing or can't be read, or no region is there.
    """
    if not item.regions:
        raise BenchmarkError(
            f"item {item.id} has no region: the file of the masks is not in the folder"
        )
    path = find_media(media, item.media)
    marked = sorted(item.regions)
    if window is not None:
        start = max(0, (len(marked) - window) // 2)
        marked = marked[start : start + window]
    if is_image(path):
        frame = open_image(media, item.media)
        region = item.regions[marked[0]]
        return RegionClip([frame], [region.mask(*frame.shape[:2])])
    chosen = sample_frames(marked, count)
    with VideoReader(path) as reader:
        size = reader.metadata.frame_height, reader.metadata.frame_width
        frames = dict(reader.read(sorted(set(chosen))))
        fps = reader.fps
    return RegionClip(
        [frames[number] for number in chosen],
        [item.regions[number].mask(*size) for number in chosen],
        tuple(chosen),
        fps=fps,
        support=(marked[0], marked[-1]),
    )


def _instead(clip: RegionClip, baseline: str | None) -> RegionClip:
    """Returns what a baseline shows in place of the region.

    Raises:
        RegionCapError: If the mask is empty, or the baseline is another captioner's.
    """
    if baseline is None:
        return clip
    if baseline == "cls":
        raise BenchmarkError("the baseline cls is Patch-ioner's own, on its tasks")
    frames = list(clip.frames)
    if baseline == "crop":
        frames = []
        for frame, mask in zip(clip.frames, clip.masks, strict=True):
            box = box_of_mask(mask)
            if box is None:
                raise BenchmarkError("the mask is empty")
            x1, y1, x2, y2 = map(int, box)
            frames.append(np.ascontiguousarray(frame[y1:y2, x1:x2]))
    masks = [np.ones(frame.shape[:2], dtype=bool) for frame in frames]
    return replace(clip, frames=frames, masks=masks)


def _score(
    place: _Place,
    options: BenchmarkOptions,
    predictions: Path,
    key: str,
    method: str,
    settings: Mapping[str, Any],
) -> BenchmarkReport:
    """Scores predictions, writes the report, and keeps it with the dataset."""
    key = "".join(c if c.isalnum() else "_" for c in key)
    output = _output(options, key)
    report = score_file(
        place.benchmark,
        predictions,
        _tools(place, options, output),
        key=key,
        method=method,
        limit=options.limit,
        default=options.default,
        prices=options.judging.judge_prices,
        settings=settings,
    )
    report = replace(report, dataset=place.dataset)
    report.write(output)
    if place.dataset is not None:
        datasets.store(report, predictions)
    return report


def _tools(place: _Place, options: BenchmarkOptions, output: Path) -> Tools:
    """Opens what the metric needs."""
    judging = options.judging
    judge = None
    if judging.judge is not None:
        judge = open_judge(
            judging.judge,
            judging.judge_model,
            answers=output.parent / "judge.jsonl",
            workers=judging.judge_workers,
        )
    models = {name: str(path) for name, path in (options.models or {}).items()}
    name = models.get("embedder", embedding.DEFAULT_MODEL)
    absent = embedding.missing(name) is not None
    return Tools(
        place.folder,
        place.media,
        judge,
        None if absent else embedding.DeferredEmbedder(name),
        options.metrics,
        models,
        judging.judge_pictures,
    )
