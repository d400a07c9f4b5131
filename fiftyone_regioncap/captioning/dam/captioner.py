"""Captioners that run DAM on images (dam) and on video (dam-video)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.captioning.checking import check_clip
from fiftyone_regioncap.captioning.confidence import agreement, caption_from_tokens
from fiftyone_regioncap.captioning.dam import prompts
from fiftyone_regioncap.captioning.dam.config import PARTS
from fiftyone_regioncap.captioning.dam.configuration import DamOptions
from fiftyone_regioncap.captioning.dam.generation import WrittenAnswer
from fiftyone_regioncap.captioning.dam.model import DAM, locate
from fiftyone_regioncap.captioning.dam.processing import FullViews
from fiftyone_regioncap.captioning.dam.scheduler import (
    ENCODED_AT_ONCE,
    DamJob,
    Scheduler,
)
from fiftyone_regioncap.captioning.dam.tokenizer import TextStream
from fiftyone_regioncap.captioning.feeding import Feeder
from fiftyone_regioncap.captioning.streaming import OnToken
from fiftyone_regioncap.core.errors import PromptError
from fiftyone_regioncap.core.types import Caption, RegionClip
from fiftyone_regioncap.models.devices import choose_device, choose_dtype
from fiftyone_regioncap.models.loading import revision_of, weight_files
from fiftyone_regioncap.models.saving import ADAPTER_WEIGHTS, adapter_base
from fiftyone_regioncap.system import assets

ROWS = {"cuda": 64, "cpu": 8}
"""Answers at once, where memory allows."""

FRAMES_KEPT = 32
"""Full views kept for other objects on the same frames."""


@dataclass(frozen=True)
class Prepared:
    """Represents the model's input for a clip.

    Attributes:
        views: Full and crop views with their masks, uint8 (T, 8, S, S).
        distinct: Whether crop and full view differ, bool (T,).
        query: Prompt with an image tag for each of the T images.
        label: Label of the clip's object; None if unknown.
    """

    views: Tensor
    distinct: Tensor
    query: str
    label: str | None


class DamCaptioner:
    """Describes regions with DAM (arXiv 2504.16072).

    Args:
        dam: Loaded DAM model.
        options: Options of caption generation.
        info: Information about the captioner; None for a model without a name.

    Attributes:
        dam: Loaded DAM model.
    """

    video = False
    """Whether the checkpoint is the one for images and videos: clips are then shown as
    8 frames, single images with that checkpoint's image prompt. The image checkpoint
    sees the frame where the object is largest."""

    def __init__(
        self,
        dam: DAM,
        options: DamOptions | None = None,
        *,
        info: CaptionerInfo | None = None,
    ) -> None:
        self.dam = dam
        self.options = options = options or DamOptions()
        self._sampling = options.sampling
        self._rows = options.rows or ROWS.get(dam.device.type, 8)
        self._workers = options.workers or max(1, min(8, (os.cpu_count() or 2) - 1))
        self._views = FullViews(FRAMES_KEPT)
        self._idle: list[Scheduler] = []
        self.info = info or self._describe("DAM", "unknown", "unknown")

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path,
        *,
        device: str | torch.device | None = None,
        options: DamOptions | None = None,
    ) -> DamCaptioner:
        """Loads a checkpoint.

        Args:
            weights: A folder, or the hub id of a published checkpoint.
            device: Torch device to run on; None for a GPU where there is one.
            options: Options of caption generation.

        Raises:
            LicenseError: When the license of the weights has not been accepted.
            WeightsError: When the folder is not a whole DAM checkpoint.
            BackendError: When the device or bitsandbytes is missing.
        """
        options = options or DamOptions()
        local = Path(weights).expanduser().is_dir()
        folder = locate(weights)
        target = choose_device(device)
        dtype = choose_dtype(options.dtype, target)
        dam = DAM.from_pretrained(folder, target, dtype, options.quantization)
        parts = [folder / ADAPTER_WEIGHTS]
        if adapter_base(folder) is None:
            parts = [path for part in PARTS for path in weight_files(folder / part)]
        info = cls._describe(
            folder.resolve().name if local else str(weights),
            revision_of(folder, parts),
            "as given with the folder"
            if local
            else assets.get(str(weights)).license.id,
        )
        return cls(dam, options, info=info)

    @classmethod
    def _describe(cls, model: str, revision: str, license: str) -> CaptionerInfo:
        return CaptionerInfo(
            name="dam-video" if cls.video else "dam",
            model=model,
            revision=revision,
            license=license,
            frames=prompts.VIDEO_FRAMES if cls.video else 1,
            batch_size=ENCODED_AT_ONCE,
            prompts=prompts.VIDEO_PROMPTS if cls.video else prompts.IMAGE_PROMPTS,
        )

    def caption(
        self, clips: Sequence[RegionClip], *, prompt: str | None = None
    ) -> list[Caption]:
        """Describes each clip, in order: see :class:`Captioner`."""
        return list(self.caption_stream(clips, prompt=prompt))

    def caption_stream(
        self,
        clips: Iterable[RegionClip],
        *,
        prompt: str | None = None,
        on_token: OnToken | None = None,
    ) -> Iterator[Caption]:
        """Describes each clip of a stream, in order.

        New clips take the rows of descriptions that ended. Clips are fetched and
        resized in threads meanwhile, a bounded number ahead. When memory runs out, the
        clips at work start again, half as many at once.

        Args:
            clips: Clips to describe; the stream may be endless.
            prompt: Name of one of the prompts of :attr:`info`, or a text; image tags
                are put before it when it has none.
            on_token: Called with the text so far of the next caption.
        """
        source = Feeder(
            clips,
            lambda clip: self._prepared(clip, prompt),
            workers=self._workers,
            ahead=self._workers + ENCODED_AT_ONCE,
        )
        with source, self._scheduler() as scheduler:
            yield from self._stream(source, scheduler, on_token)

    def stream(self, clip: RegionClip, *, prompt: str | None = None) -> Iterator[str]:
        """Yields the description of one clip as it is written.

        The pieces end at spaces; joined and stripped they are the caption.

        Raises:
            PromptError: When the clip or the prompt is bad.
        """
        job = self._job(0, self.prepare(clip, prompt))
        text = TextStream(self.dam.tokenizer)
        with self._scheduler() as scheduler:
            scheduler.submit(job)
            try:
                while scheduler.busy:
                    for update in scheduler.step():
                        if update.error is not None:
                            raise PromptError(update.error)
                        if update.token is not None:
                            yield text.put(update.token)
                yield text.end()
            finally:
                scheduler.cancel(0)

    @contextmanager
    def _scheduler(self) -> Iterator[Scheduler]:
        """Lends a scheduler: streams one after the other share one and its cache."""
        scheduler = self._idle.pop() if self._idle else Scheduler(self.dam, self._rows)
        try:
            yield scheduler
        finally:
            self._idle.append(scheduler)

    def prepare(self, clip: RegionClip, prompt: str | None = None) -> Prepared:
        """Chooses the frames of a clip and makes their views; safe in any thread.

        Frames without the object are left out; the video prompt gets 8 of the others,
        some twice when there are fewer.

        Raises:
            PromptError: If no frame shows the object, a mask has another size than its
                frame, or the numbers of frames and masks differ.
        """
        check_clip(clip, rgb=False)  # the processor takes gray and alpha too
        areas = [np.count_nonzero(mask) for mask in clip.masks]
        shown = [number for number, area in enumerate(areas) if area]
        if not self.video:
            shown = [max(shown, key=lambda number: areas[number])]
        elif len(shown) > 1:
            count = prompts.VIDEO_FRAMES
            last = len(shown) - 1
            shown = [shown[int(step)] for step in np.linspace(0, last, count)]
        made = {
            number: self.dam.processor.views(
                clip.frames[number],
                clip.masks[number],
                self._views,
                self.options.focal,
            )[0]
            for number in dict.fromkeys(shown)
        }
        views = torch.from_numpy(np.stack([made[number] for number in shown]))
        return Prepared(
            views=views,
            distinct=(views[:, :4] != views[:, 4:]).flatten(1).any(dim=1),
            query=self._query(prompt, len(shown)),
            label=clip.label,
        )

    def _query(self, prompt: str | None, images: int) -> str:
        named = prompts.IMAGE_PROMPTS
        if self.video:
            joint = prompts.JOINT_IMAGE_PROMPTS
            named = joint if images == 1 else prompts.VIDEO_PROMPTS
        text = named.get(prompt or "detailed", prompt or "")
        return prompts.query(text, images, self.video)

    def _prepared(self, clip: RegionClip, prompt: str | None) -> Prepared | Caption:
        try:
            prepared = self.prepare(clip, prompt)
            if self.dam.device.type == "cuda":
                prepared = replace(prepared, views=prepared.views.pin_memory())
            return prepared
        except Exception as error:  # a clip of any kind of badness spoils no other
            return _error_caption(error)

    def _stream(
        self,
        source: Feeder[RegionClip, Prepared | Caption],
        scheduler: Scheduler,
        on_token: OnToken | None,
    ) -> Iterator[Caption]:
        labels: dict[int, str | None] = {}
        drafts: dict[int, list[int]] = {}
        done: dict[int, Caption] = {}
        taken = given = 0
        try:
            while not source.ended or labels:
                # Captions that wait for an earlier one are few and small.
                while (
                    scheduler.waiting < ENCODED_AT_ONCE
                    and taken - given < 4 * self._rows
                    and (got := source.take(wait=not labels)) is not None
                ):
                    if isinstance(got, Caption):
                        done[taken] = got
                    else:
                        labels[taken] = got.label
                        scheduler.submit(self._job(taken, got))
                    taken += 1
                    if given in done:
                        break
                for update in scheduler.step():
                    number = update.key
                    assert isinstance(number, int)
                    if update.error is not None:
                        done[number] = Caption(error=update.error)
                    elif update.answers is not None:
                        done[number] = self._caption(update.answers, labels[number])
                    else:
                        if on_token is not None and update.token is not None:
                            draft = drafts.setdefault(number, [])
                            draft.append(update.token)
                            if number == given:
                                on_token(self.dam.tokenizer.answer(draft))
                        continue
                    del labels[number]
                    drafts.pop(number, None)
                while given in done:
                    yield done.pop(given)
                    given += 1
            if source.error is not None:
                raise source.error
        finally:
            for number in labels:
                scheduler.cancel(number)

    def _job(self, key: int, prepared: Prepared) -> DamJob:
        return DamJob(
            key,
            prepared.views,
            prepared.query,
            prepared.distinct,
            tuple(
                replace(self._sampling, seed=self._sampling.seed + sample)
                for sample in range(self.options.samples)
            ),
            self.options.max_new_tokens,
        )

    def _caption(self, answers: list[WrittenAnswer], label: str | None) -> Caption:
        tokenizer = self.dam.tokenizer
        texts = [tokenizer.answer(answer.ids) for answer in answers]
        chosen, agreed = agreement(texts) if len(texts) > 1 else (0, None)
        answer = answers[chosen]
        words = [
            (token, probability)
            for token, probability in zip(answer.ids, answer.probabilities, strict=True)
            if not tokenizer.is_special(token)
        ]
        return caption_from_tokens(
            texts[chosen],
            tokenizer.pieces([token for token, _ in words]),
            [probability for _, probability in words],
            label=label,
            tokens=len(answer.ids),
            agreement=agreed,
        )


class DamVideoCaptioner(DamCaptioner):
    """Describes regions with the video checkpoint of DAM, over 8 frames."""

    video = True


def _error_caption(error: Exception) -> Caption:
    return Caption(error=str(error) or type(error).__name__)
