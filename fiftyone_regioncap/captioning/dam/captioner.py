"""DAM as a captioner: many tracks in one queue, one answer each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fiftyone_regioncap.captioning.base import CaptionerInfo
from fiftyone_regioncap.captioning.confidence import (
    agreement,
    content_minimum,
    short_label,
)
from fiftyone_regioncap.captioning.dam import prompts
from fiftyone_regioncap.captioning.dam.config import PARTS
from fiftyone_regioncap.captioning.dam.generation import Answer
from fiftyone_regioncap.captioning.dam.model import DAM, locate
from fiftyone_regioncap.captioning.dam.processing import FullViews
from fiftyone_regioncap.captioning.dam.quantization import Quantization
from fiftyone_regioncap.captioning.dam.scheduler import ENCODED_AT_ONCE, Job, Scheduler
from fiftyone_regioncap.captioning.feeding import Feeder
from fiftyone_regioncap.captioning.streaming import OnToken
from fiftyone_regioncap.core.errors import BackendError, PromptError
from fiftyone_regioncap.core.types import Caption, RegionClip
from fiftyone_regioncap.models.loading import (
    choose_device,
    choose_dtype,
    revision_of,
    weight_files,
)
from fiftyone_regioncap.models.sampling import Sampling
from fiftyone_regioncap.system import assets

ROWS = {"cuda": 64, "cpu": 8}
"""Answers at once, where memory allows."""

FRAMES_KEPT = 32
"""Full views kept for other objects on the same frames."""


@dataclass(frozen=True)
class Prepared:
    """A clip as the model's input.

    Attributes:
        views: uint8 (T, 8, S, S).
        distinct: bool (T,), whether crop and full view differ.
        query: with a tag for each of the T images.
        label: of the clip.
    """

    views: Tensor
    distinct: Tensor
    query: str
    label: str | None


class DamCaptioner:
    """Describes regions with DAM (arXiv 2504.16072).

    Args:
        dam: the model.
        video: whether the checkpoint is the one for images and videos: clips are then
            shown as 8 frames, single images with that checkpoint's image prompt. The
            image checkpoint sees the frame where the object is biggest.
        model: the name of the weights.
        revision: of the weights.
        license: of the weights.
        max_new_tokens: where descriptions end at the latest.
        temperature: 0 for the most likely words; else words are drawn.
        top_p: see :class:`Sampling`.
        top_k: see :class:`Sampling`.
        seed: of the drawing.
        samples: how many descriptions are drawn of each clip. With 2 or more, the most
            typical one is taken and ``agreement`` says how far they agree; the
            temperature must be above 0 then.
        rows: descriptions written at once; None for what the device likes. Fewer where
            memory is short.
        workers: threads that resize frames.

    Attributes:
        dam: the model.
    """

    def __init__(
        self,
        dam: DAM,
        *,
        video: bool = False,
        model: str = "DAM",
        revision: str = "unknown",
        license: str = "unknown",
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 0.5,
        top_k: int = 50,
        seed: int = 0,
        samples: int = 1,
        rows: int | None = None,
        workers: int | None = None,
    ) -> None:
        try:
            self._sampling = Sampling(temperature, top_k, top_p, seed)
        except ValueError as error:
            raise BackendError(str(error)) from error
        if max_new_tokens < 1 or samples < 1:
            raise BackendError("max_new_tokens and samples are 1 or more")
        if samples > 1 and self._sampling.greedy:
            raise BackendError(
                f"{samples} samples at temperature 0 are all the same; give a "
                "temperature such as 0.2"
            )
        self.dam = dam
        self._video = video
        self._max_new_tokens = max_new_tokens
        self._samples = samples
        self._rows = rows or ROWS.get(dam.device.type, 8)
        self._workers = workers or max(1, min(8, (os.cpu_count() or 2) - 1))
        self._views = FullViews(FRAMES_KEPT)
        self._idle: list[Scheduler] = []
        self._facts = (model, revision, license)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        video: bool = False,
        quantization: Quantization | None = None,
        accept_license: bool = False,
        **options: object,
    ) -> DamCaptioner:
        """Loads a checkpoint.

        Args:
            path: a folder, or the hub id of a published checkpoint.
            device: None for a GPU where there is one.
            dtype: float32, float16 or bfloat16; None for bfloat16 on a GPU and float32
                elsewhere.
            video: see the class.
            quantization: ``"8bit"`` or ``"4bit"`` weights in the language model,
                through bitsandbytes.
            accept_license: whether the user accepts the license of the weights; asked
                for once, before the first download.
            options: of the constructor.

        Raises:
            LicenseError: when the license has not been accepted.
            WeightsError: when the folder is not a whole DAM checkpoint.
            BackendError: when an option or the device is not possible here.
        """
        name = str(path)
        local = Path(path).is_dir()
        if not local and accept_license:
            assets.accept_license(name)
        where = locate(path)
        target = choose_device(device)
        dam = DAM.from_pretrained(
            where, target, choose_dtype(dtype, target), quantization
        )
        return cls(
            dam,
            video=video,
            model=where.resolve().name if local else name,
            revision=revision_of(
                where, [path for part in PARTS for path in weight_files(where / part)]
            ),
            license="as given with the folder"
            if local
            else assets.get(name).license.id,
            **options,  # type: ignore[arg-type]
        )

    @cached_property
    def info(self) -> CaptionerInfo:
        """Name, weights, license and needs."""
        model, revision, license = self._facts
        return CaptionerInfo(
            name="dam-video" if self._video else "dam",
            model=model,
            revision=revision,
            license=license,
            frames=prompts.VIDEO_FRAMES if self._video else 1,
            batch_size=ENCODED_AT_ONCE,
            prompts=prompts.VIDEO_PROMPTS if self._video else prompts.IMAGE_PROMPTS,
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
            clips: may never end.
            prompt: the name of one of the prompts of :attr:`info`, or a text; image
                tags are put before it when it has none.
            on_token: called with the text so far of the next caption.
        """
        source = Feeder(
            clips,
            lambda clip: self._prepared(clip, prompt),
            workers=self._workers,
            ahead=self._workers + ENCODED_AT_ONCE,
        )
        # Streams at the same time have caches of their own; those one after the other
        # share one.
        scheduler = self._idle.pop() if self._idle else Scheduler(self.dam, self._rows)
        try:
            with source:
                yield from self._stream(source, scheduler, on_token)
        finally:
            self._idle.append(scheduler)

    def stream(self, clip: RegionClip, *, prompt: str | None = None) -> Iterator[str]:
        """Gives out the description of one clip as it is written.

        Raises:
            PromptError: when the clip or the prompt is bad.
        """
        prepared = self.prepare(clip, prompt)
        views = self.dam.normalize(prepared.views)
        yield from self.dam.stream(
            views, prepared.query, self._max_new_tokens, self._sampling
        )

    def prepare(self, clip: RegionClip, prompt: str | None = None) -> Prepared:
        """Chooses the frames of a clip and makes their views; safe in any thread.

        Frames without the object are left out; the video prompt gets 8 of the others,
        some twice when there are fewer.

        Raises:
            PromptError: when no frame shows the object, a mask has another size than
                its frame, or frames and masks are not equally many.
        """
        if len(clip.frames) != len(clip.masks) or not clip.frames:
            raise PromptError(
                f"the clip has {len(clip.frames)} frames and {len(clip.masks)} masks; "
                "give one mask for each of one or more frames"
            )
        for frame, mask in zip(clip.frames, clip.masks, strict=True):
            if np.shape(mask) != np.shape(frame)[:2]:
                raise PromptError(
                    f"a mask is {np.shape(mask)}, its frame {np.shape(frame)[:2]} "
                    "(height, width); give masks of the frames' size"
                )
        areas = [np.count_nonzero(mask) for mask in clip.masks]
        shown = [number for number, area in enumerate(areas) if area]
        if not shown:
            raise PromptError("the mask is empty on every frame; mark the object")
        if not self._video:
            shown = [max(shown, key=lambda number: areas[number])]
        elif len(shown) > 1:
            count = prompts.VIDEO_FRAMES
            last = len(shown) - 1
            shown = [shown[int(step)] for step in np.linspace(0, last, count)]
        made = {
            number: self.dam.processor.views(
                clip.frames[number], clip.masks[number], self._views
            )[0]
            for number in dict.fromkeys(shown)
        }
        views = torch.from_numpy(np.stack([made[number] for number in shown]))
        if self.dam.device.type == "cuda":
            views = views.pin_memory()
        return Prepared(
            views=views,
            distinct=(views[:, :4] != views[:, 4:]).flatten(1).any(dim=1),
            query=self._query(prompt, len(shown)),
            label=clip.label,
        )

    def _query(self, prompt: str | None, images: int) -> str:
        named = prompts.IMAGE_PROMPTS
        if self._video:
            joint = prompts.JOINT_IMAGE_PROMPTS
            named = joint if images == 1 else prompts.VIDEO_PROMPTS
        text = named.get(prompt or "detailed", prompt or "")
        return prompts.query(text, images, self._video)

    def _prepared(self, clip: RegionClip, prompt: str | None) -> Prepared | Caption:
        try:
            return self.prepare(clip, prompt)
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

    def _job(self, key: int, prepared: Prepared) -> Job:
        return Job(
            key,
            prepared.views,
            prepared.query,
            prepared.distinct,
            tuple(
                replace(self._sampling, seed=self._sampling.seed + sample)
                for sample in range(self._samples)
            ),
            self._max_new_tokens,
        )

    def _caption(self, answers: list[Answer], label: str | None) -> Caption:
        tokenizer = self.dam.tokenizer
        texts = [tokenizer.answer(answer.ids) for answer in answers]
        chosen, agreed = agreement(texts) if len(texts) > 1 else (0, None)
        answer, text = answers[chosen], texts[chosen]
        if not text:
            return Caption(error="the model had nothing to say about this region")
        words = [
            (token, probability)
            for token, probability in zip(answer.ids, answer.probabilities, strict=True)
            if not tokenizer.is_special(token)
        ]
        probabilities = [probability for _, probability in words]
        pieces = tokenizer.pieces([token for token, _ in words])
        return Caption(
            text=text,
            label=label or short_label(text),
            confidence=sum(probabilities) / len(probabilities),
            min_confidence=content_minimum(pieces, probabilities),
            agreement=agreed,
            tokens=len(answer.ids),
        )


def _error_caption(error: Exception) -> Caption:
    return Caption(error=str(error) or type(error).__name__)


class DamVideoCaptioner(DamCaptioner):
    """DAM over several frames of a track."""

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> DamCaptioner:
        """Loads a video checkpoint; see :meth:`DamCaptioner.from_pretrained`."""
        return super().from_pretrained(path, **{**options, "video": True})
