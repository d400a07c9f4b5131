"""Examples to learn from, as plain values: kept in a file, read in any process."""

from __future__ import annotations

import json
import os
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset, Sampler

from fiftyone_regioncap.captioning.trainable import Inputs, Trainable, TrainingText
from fiftyone_regioncap.core.errors import RegionCapError, WeightsError
from fiftyone_regioncap.core.types import RLE, Frame, RegionClip
from fiftyone_regioncap.video.images import load_image
from fiftyone_regioncap.video.reader import VideoReader

ANEW = "give another out, or restart=True to begin anew"
"""What to do about the folder of a training that can't be gone on with."""

VIDEOS_OPEN = 4
"""Videos that a process keeps open for further examples of them."""


@dataclass(frozen=True)
class Example:
    """A region with the caption to learn.

    Attributes:
        id: Id of the label that the caption is from.
        path: The video, or the image.
        kind: What ``path`` is; of a text it is a name.
        frames: Frames that show the region, 0-based, ascending; of an image (0,).
        masks: COCO run lengths of the region on each of them.
        size: Height and width in pixels.
        text: What is to be learned.
        source: Field that the caption is from.
        weight: How often the example comes in each epoch; a fraction is a chance.
    """

    id: str
    path: str
    kind: Literal["video", "image", "text"]
    frames: tuple[int, ...]
    masks: tuple[str, ...]
    size: tuple[int, int]
    text: TrainingText
    source: str = ""
    weight: float = 1.0

    def to_json(self) -> str:
        """Returns the example as a line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Example:
        """Reads :meth:`to_json`."""
        values: dict[str, Any] = json.loads(line)
        values = {name: _tuples(value) for name, value in values.items()}
        text = {name: _tuples(value) for name, value in values.pop("text").items()}
        return cls(text=TrainingText(**text), **values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Writes examples, one a line; the file is whole or not there."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        for example in examples:
            file.write(example.to_json() + "\n")
    partial.replace(path)


def read_examples(path: Path) -> list[Example]:
    """Reads what :func:`write_examples` wrote.

    Raises:
        WeightsError: When the file is missing or damaged.
    """
    found: list[Example] = []
    try:
        with path.open(encoding="utf-8") as file:
            found.extend(map(Example.from_json, file))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(
            f"{path} can't be read after line {len(found)} ({error}); {ANEW}"
        ) from error
    return found


class Reader:
    """Reads the clips of examples; keeps a few videos open, in the process it is in."""

    def __init__(self) -> None:
        self._process: int | None = None
        self._videos: OrderedDict[str, VideoReader] = OrderedDict()

    def clip(self, example: Example) -> RegionClip:
        """Reads the frames of an example.

        Raises:
            RegionCapError: When the file is missing or can't be decoded, or has
                another size than the masks.
        """
        frames = self._frames(example)
        height, width = frames[0].shape[:2]
        if (height, width) != example.size:
            raise RegionCapError(
                f"{example.path} is {width}x{height}, but its masks are "
                f"{example.size[1]}x{example.size[0]}; the file was replaced since"
            )
        return RegionClip(
            frames=frames,
            masks=[RLE(example.size, m.encode()).decode() for m in example.masks],
            frame_indices=example.frames,
            label=example.text.label,
        )

    def _frames(self, example: Example) -> list[Frame]:
        if example.kind == "image":
            try:
                return [load_image(example.path)]
            except (OSError, SyntaxError, ValueError) as error:
                raise RegionCapError(f"it can't be read: {error}") from error
        frames = dict(self._video(example.path).read(sorted(set(example.frames))))
        return [frames[frame] for frame in example.frames]

    def _video(self, path: str) -> VideoReader:
        if self._process != os.getpid():  # decoders do not survive a fork
            self._videos, self._process = OrderedDict(), os.getpid()
        if path not in self._videos:
            self._videos[path] = VideoReader(path)
            while len(self._videos) > VIDEOS_OPEN:
                self._videos.popitem(last=False)[1].close()
        self._videos.move_to_end(path)
        return self._videos[path]


class Examples(Dataset[Inputs]):
    """Examples as a recipe's inputs, by key: epoch times their number, plus place.

    What is random in a sample depends on the seed, the epoch and the example alone, so
    that neither a resumed run nor the number of processes changes it.

    Args:
        examples: The examples.
        recipe: Makes inputs of a clip and a text.
        seed: Seed of all chance.
    """

    def __init__(
        self, examples: Sequence[Example], recipe: Trainable, seed: int
    ) -> None:
        self.examples = examples
        self._recipe, self._seed = recipe, seed
        self.reader = Reader()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: int) -> Inputs:
        epoch, place = divmod(key, len(self.examples))
        example = self.examples[place]
        draw = random.Random(f"{self._seed}:{epoch}:{example.id}")
        try:
            clip = RegionClip([], [])
            if self._recipe.frames:
                clip = self.reader.clip(example)
            return self._recipe.encode(clip, example.text, draw)
        except RegionCapError as error:
            raise RegionCapError(
                f"caption {example.id} of {example.path}: {error}"
            ) from error


class EpochSampler(Sampler[int]):
    """Draws the keys of :class:`Examples` in an order that depends on seed and epoch.

    Args:
        weights: How often each example comes in an epoch; a fraction is a chance.
        seed: Seed of the order.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self._weights, self._seed = weights, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch, from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return max(1, round(sum(self._weights)))

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(f"{self._seed}:{self._epoch}")
        drawn: list[int] = []
        rest: list[tuple[float, int]] = []
        for place, weight in enumerate(self._weights):
            whole = int(weight)
            drawn += [place] * whole
            if weight > whole:
                # Of weighted draws without replacement (Efraimidis and Spirakis 2006).
                rest.append((draw.random() ** (1 / (weight - whole)), place))
        more = len(self) - len(drawn)
        drawn += [place for _, place in sorted(rest, reverse=True)[: max(more, 0)]]
        draw.shuffle(drawn)
        first = self._epoch * len(self._weights)
        return iter([first + place for place in drawn[: len(self)]])
