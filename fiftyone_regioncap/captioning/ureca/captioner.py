"""The captioner of URECA."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.captioning.checking import clip_problem
from fiftyone_regioncap.captioning.confidence import caption_from_tokens
from fiftyone_regioncap.captioning.dam.generation import WrittenAnswer
from fiftyone_regioncap.captioning.merging import best_frame
from fiftyone_regioncap.captioning.ureca.config import UNREACHABLE, UrecaConfig
from fiftyone_regioncap.captioning.ureca.configuration import UrecaOptions
from fiftyone_regioncap.captioning.ureca.generation import (
    Prefix,
    RegionPrompt,
    read_prefix,
    write,
)
from fiftyone_regioncap.captioning.ureca.model import UrecaModel
from fiftyone_regioncap.captioning.ureca.prompts import (
    END,
    IMAGE_TOKEN,
    MASK,
    MASK_TOKEN,
    PROMPTS,
    TOKENS,
    conversation,
    question,
)
from fiftyone_regioncap.captioning.ureca.sizes import regions_at_once
from fiftyone_regioncap.captioning.ureca.tiling import (
    image_tiles,
    mask_tiles,
    static_mask,
)
from fiftyone_regioncap.captioning.ureca.tokenizer import UrecaTokenizer, load_tokenizer
from fiftyone_regioncap.captioning.ureca.weights import mask_channels
from fiftyone_regioncap.core.errors import PromptError, WeightsError
from fiftyone_regioncap.core.types import Caption, Frame, Mask, RegionClip
from fiftyone_regioncap.models.devices import choose_device, choose_dtype
from fiftyone_regioncap.models.loading import fetch_checkpoint, revision_of
from fiftyone_regioncap.models.saving import (
    ADAPTER_WEIGHTS,
    adapter_base,
    apply_adapter,
)

FILES = ("*.json", "*.safetensors", "tokenizer.model", "merges.txt")
"""Patterns of the files to download of a hub repository."""

FRAMES_KEPT = 4
"""Frames whose tokens are kept for the regions of later calls."""

CUTTERS = 4
"""Threads that cut tiles; resizing releases the interpreter's lock."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class _Look:
    """Holds the frame that a clip is described from.

    Attributes:
        number: Index of the clip in the batch.
        frame: RGB frame, uint8 (H, W, 3).
        mask: Object mask, bool (H, W).
    """

    number: int
    frame: Frame
    mask: Mask


@dataclass(frozen=True)
class _Seen:
    """Represents an encoded frame.

    Attributes:
        frame: The frame's array, kept so that no other array gets its id.
        tiles: Number of tiles that the frame is cut into.
        prefix: Prefix of the prompts about the frame's regions.
    """

    frame: Frame
    tiles: int
    prefix: Prefix


class UrecaCaptioner:
    """Describes regions with URECA (arXiv 2504.05305) so that captions tell them apart.

    Of a clip with several frames, the one that
    :func:`fiftyone_regioncap.captioning.merging.best_frame` chooses is described. The
    tokens of a frame are computed once for all its regions: clips share a frame when it
    is the same array.

    Args:
        model: URECA's networks.
        tokenizer: Tokenizer of the checkpoint.
        options: Options of tiling and generation.
        info: Information about the captioner; None for a model without a name.

    Attributes:
        model: URECA's networks.
        tokenizer: Tokenizer of the checkpoint.
        options: Options of tiling and generation, with the defaults of the checkpoint
            and the device filled in.
        info: Name, weights, license and needs.
        folder: Folder of the checkpoint, where it was loaded from one.
    """

    folder: Path

    def __init__(
        self,
        model: UrecaModel,
        tokenizer: UrecaTokenizer,
        options: UrecaOptions | None = None,
        *,
        info: CaptionerInfo | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        options = options or UrecaOptions()
        self._at_once = options.regions_at_once or regions_at_once(
            model.config, options, model.device, model.dtype
        )
        self._dynamic_mask = (
            model.config.dynamic_mask
            if options.dynamic_mask is None
            else options.dynamic_mask
        )
        self.options = options
        self.info = info or CaptionerInfo(
            "ureca", model="ureca", revision="unknown", license="unknown"
        )
        self.info = replace(
            self.info,
            frames=options.frames,
            batch_size=self._at_once,
            prompts=PROMPTS,
        )
        self._seen: OrderedDict[tuple[int, str], _Seen] = OrderedDict()
        self._busy = threading.Lock()
        self._ids = lru_cache(maxsize=16)(self._conversation_ids)

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path,
        *,
        device: str | torch.device | None = None,
        options: UrecaOptions | None = None,
    ) -> UrecaCaptioner:
        """Loads a checkpoint.

        Args:
            weights: A folder with the files that docs/ureca.md lists, an adapter's
                folder, which names its base, or a hub id.
            device: Torch device to run on; None for a GPU where there is one.
            options: Options of tiling and generation.

        Raises:
            WeightsError: When something is missing, corrupt, or of another model.
            BackendError: When there is no such device here.
        """
        options = options or UrecaOptions()
        where = choose_device(device)
        adapted = fetch_checkpoint(weights, files=FILES, advice=UNREACHABLE)
        base = adapter_base(adapted)
        path = fetch_checkpoint(base or adapted, files=FILES, advice=UNREACHABLE)
        config = UrecaConfig.read(path)
        if config.mask_channels is None:
            config = replace(config, mask_channels=mask_channels(path))
        tokenizer = load_tokenizer(path, config.family)
        if len(tokenizer) > config.llm.vocab_size:
            raise WeightsError(
                f"{path}: the tokenizer has {len(tokenizer)} tokens, config.json a "
                f"vocabulary of {config.llm.vocab_size}; they are of two checkpoints"
            )
        dtype = choose_dtype(options.dtype, where)
        local = Path(weights).expanduser().is_dir()
        model = UrecaModel.from_pretrained(path, config, where, dtype)
        if base is not None:
            apply_adapter(adapted, {"model": model})
        made = cls(
            model,
            tokenizer,
            options,
            info=CaptionerInfo(
                name="ureca",
                model=adapted.resolve().name if local else str(weights),
                revision=revision_of(
                    adapted, None if base is None else [adapted / ADAPTER_WEIGHTS]
                ),
                license="not stated (InternVL2.5, its base, is MIT)",
            ),
        )
        made.folder = path
        return made

    @torch.inference_mode()
    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        """Describes each clip, in order.

        Args:
            clips: Clips of any objects, videos, sizes and lengths.
            prompt: Name of one of the prompts of :attr:`info`, or a text; placeholders
                for image and mask are put before it when it has none.

        Raises:
            PromptError: When the prompt has tokens that only URECA may write.
            torch.OutOfMemoryError: When the batch doesn't fit.
        """
        asked = checked(PROMPTS.get(prompt or "detailed", prompt or ""))
        captions: dict[int, Caption] = {}
        looks: list[_Look] = []
        for number, clip in enumerate(clips):
            found = _look(number, clip)
            if isinstance(found, _Look):
                looks.append(found)
            else:
                captions[number] = Caption(label=clip.label, error=found)
        with self._busy:
            try:
                for some in _batches(_by_frame(looks), self._at_once):
                    captions |= self._describe(some, asked, clips)
            except BaseException:
                self._seen.clear()  # gives memory back for a smaller batch
                raise
        return [captions[number] for number in range(len(clips))]

    def tiles(self, frame: Frame) -> NDArray[np.uint8]:
        """Cuts an image into tiles, uint8 (T, S, S, 3)."""
        config = self.model.config
        return image_tiles(
            frame,
            max_tiles=self.options.max_tiles,
            tile=config.tile,
            thumbnail=config.thumbnail,
        )

    def mask_tiles(self, mask: Mask) -> NDArray[np.uint8]:
        """Cuts a mask into tiles, uint8 (T, S, S)."""
        config = self.model.config
        if not self._dynamic_mask:
            return static_mask(mask, config.tile)
        return mask_tiles(
            mask,
            max_tiles=self.options.max_tiles,
            tile=config.tile,
            thumbnail=config.thumbnail,
        )

    def prompt_ids(
        self, asked: str, image_tiles: int, mask_tiles: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the ids of a prompt in two parts.

        Args:
            asked: Question with placeholders for image and mask.
            image_tiles: Number of tiles of the image.
            mask_tiles: Number of tiles of the mask.

        Returns:
            What all regions of an image share, and the rest: from the first token of
            the mask on.
        """
        return self._ids(asked, image_tiles, mask_tiles)

    def embed(
        self,
        ids: Sequence[int],
        image: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Returns the language model's input for a part of a prompt, (length, D).

        Args:
            ids: Token ids of that part.
            image: Image tokens, (T, M, D), if the part has placeholders for them.
            mask: Mask tokens, (T, N, D), if the part has placeholders for them.

        Raises:
            PromptError: When places and tokens are not equally many.
        """
        special = self.tokenizer.special
        places = [
            (special[token], features)
            for token, features in ((IMAGE_TOKEN, image), (MASK_TOKEN, mask))
            if features is not None
        ]
        return self.model.embed(ids, places)

    def answer(
        self, regions: Sequence[RegionPrompt], max_new_tokens: int | None = None
    ) -> list[WrittenAnswer]:
        """Answers prompts together.

        Args:
            regions: Prompts of one or more regions, those of one frame next to each
                other.
            max_new_tokens: None for the option's.
        """
        return write(
            self.model.llm,
            regions,
            end=self.tokenizer.special[END],
            limit=max_new_tokens or self.options.max_new_tokens,
            sampling=self.options.sampling,
        )

    def text(self, ids: Sequence[int]) -> str:
        """Returns the text of an answer."""
        return self.tokenizer.decode(ids).split(END)[0].strip()

    def _describe(
        self, looks: Sequence[_Look], asked: str, clips: Sequence[RegionClip]
    ) -> dict[int, Caption]:
        """Returns captions by clip number."""
        captions: dict[int, Caption] = {}
        regions: list[RegionPrompt] = []
        described: list[int] = []
        with ThreadPoolExecutor(CUTTERS) as pool:
            cut = pool.map(self.mask_tiles, [look.mask for look in looks])
            for look, tiles in zip(looks, cut, strict=True):
                try:
                    regions.append(self._region(look, tiles, asked))
                    described.append(look.number)
                except PromptError as error:
                    captions[look.number] = Caption(
                        label=clips[look.number].label, error=str(error)
                    )
        if regions:
            for number, answer in zip(described, self.answer(regions), strict=True):
                captions[number] = self._caption(answer, clips[number].label)
        return captions

    def _region(
        self, look: _Look, tiles: NDArray[np.uint8], asked: str
    ) -> RegionPrompt:
        # The thumbnail blurs masks, so that specks leave a trace there.
        several = self._dynamic_mask and len(tiles) > 1
        sharp = tiles[:-1] if several and self.model.config.thumbnail else tiles
        if not sharp.any():
            raise PromptError(
                f"the mask ({np.count_nonzero(look.mask)} pixels) is so small that "
                "nothing of it is left at the model's resolution; crop the image around"
                " the region, or leave it out"
            )
        seen = self._frame(look.frame, asked, len(tiles))
        _, rest = self.prompt_ids(asked, seen.tiles, len(tiles))
        mask = self.model.mask_tokens(torch.from_numpy(tiles))
        return RegionPrompt(seen.prefix, self.embed(rest, mask=mask))

    def _frame(self, frame: Frame, asked: str, mask_tiles: int) -> _Seen:
        """Returns the frame's part of the prompts, encoded once."""
        key = id(frame), asked
        if key not in self._seen:
            tiles = self.tiles(frame)
            shared, own = self.prompt_ids(asked, len(tiles), mask_tiles)
            self._check_length(frame, len(tiles), len(shared) + len(own))
            image = self.model.image_tokens(torch.from_numpy(tiles))
            prefix = read_prefix(self.model.llm, self.embed(shared, image=image))
            self._seen[key] = _Seen(frame, len(tiles), prefix)
            if len(self._seen) > FRAMES_KEPT:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return self._seen[key]

    def _check_length(self, frame: Frame, tiles: int, length: int) -> None:
        context, answer = self.model.config.context, self.options.max_new_tokens
        if length + answer > context:
            height, width = frame.shape[:2]
            raise PromptError(
                f"an image of {width}x{height} makes {tiles} tiles and a prompt of "
                f"{length} tokens; with {answer} for the answer that is more than the "
                f"{context} that the model can read. Give a smaller max_tiles (now "
                f"{self.options.max_tiles}) or max_new_tokens"
            )

    def _conversation_ids(
        self, asked: str, image_tiles: int, mask_tiles: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        config = self.model.config
        assert config.mask_channels is not None
        text = conversation(
            asked,
            image_tiles * config.tokens_per_tile,
            mask_tiles * config.mask_channels,
        )
        ids = tuple(self.tokenizer.encode(text))
        cut = ids.index(self.tokenizer.special[MASK_TOKEN])
        return ids[:cut], ids[cut:]

    def _caption(self, answer: WrittenAnswer, label: str | None) -> Caption:
        words = [
            (token, probability)
            for token, probability in zip(answer.ids, answer.probabilities, strict=True)
            if not self.tokenizer.is_special(token)
        ]
        return caption_from_tokens(
            self.text(answer.ids),
            self.tokenizer.pieces([token for token, _ in words]),
            [probability for _, probability in words],
            label=label,
            tokens=len(answer.ids),
        )


def checked(text: str) -> str:
    """Returns a question with its places for image and mask.

    Raises:
        PromptError: When it would end its turn or claim places of its own.
    """
    taken = [token for token in TOKENS if token != MASK and token in text]
    if taken:
        raise PromptError(
            f"the prompt has {', '.join(taken)}, which only URECA's own layout may "
            "have; leave it out"
        )
    return question(text)


def _look(number: int, clip: RegionClip) -> _Look | str:
    """Returns the frame to describe a clip from, or what is wrong with the clip."""
    problem = clip_problem(clip)
    if problem is not None:
        return problem
    best = best_frame(clip)
    assert best is not None  # some mask has a pixel
    if np.count_nonzero(clip.masks[best]) < 2:
        return "the mask is a single pixel, which shows nothing; mark the whole object"
    return _Look(number, clip.frames[best], clip.masks[best])


def _by_frame(looks: Sequence[_Look]) -> Iterator[_Look]:
    """Yields the frames so that clips of one frame stand together."""
    frames: dict[int, list[_Look]] = {}
    for look in looks:
        frames.setdefault(id(look.frame), []).append(look)
    for together in frames.values():
        yield from together


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while together := list(islice(items, size)):
        yield together
