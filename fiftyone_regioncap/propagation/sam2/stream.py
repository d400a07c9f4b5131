"""The loop over frames: masks' logits of many objects in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.propagation.base import Direction, Frames
from fiftyone_regioncap.propagation.sam2.bank import Bank, Limits, Outcome, Step
from fiftyone_regioncap.propagation.sam2.frames import FrameFeed, normalize
from fiftyone_regioncap.propagation.sam2.model import Decoded, Features, TrackerModel
from fiftyone_regioncap.propagation.sam2.prompts import (
    FramePrompt,
    model_masks,
    model_points,
    prompt_kind,
)

KEPT_FEATURES = 2
"""Frames whose image features are kept: the current one and the last prompted one."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FrameLogits:
    """What the model says of one frame, before it becomes masks.

    Attributes:
        frame: 0-based frame index.
        object_ids: of the B objects on it.
        logits: float32 (B, h, w), low-resolution mask logits; above 0 is object.
        presence: float32 (B,), logit of the occlusion head; above 0 is visible.
        iou: float32 (B,), predicted IoU in [0, 1].
        prompted: ids of the objects that were prompted on this frame.
    """

    frame: int
    object_ids: tuple[int, ...]
    logits: Tensor
    presence: Tensor
    iou: Tensor
    prompted: frozenset[int]


@dataclass(frozen=True)
class Pass:
    """One way through the frames.

    Attributes:
        step: 1 forward, -1 backward.
        frames: in the order of the pass.
    """

    step: Step
    frames: range


@dataclass(frozen=True)
class Compute:
    """How the model is run.

    Attributes:
        dtype: of the arithmetic; float32, or a smaller type through autocast.
        object_chunk: how many objects go through the model at once, at most.
        max_conditioning_frames: how many prompted frames of an object are looked at,
            at most, where the model itself sets no lower limit.
    """

    dtype: torch.dtype
    object_chunk: int
    max_conditioning_frames: int


@dataclass(frozen=True)
class _Remembered:
    """One object's memories for one frame; objects of one ``key`` make a batch."""

    bank: Bank
    offsets: tuple[int, ...]
    tokens: list[Tensor]
    pointer_offsets: list[int]
    pointers: list[Tensor]

    @property
    def key(self) -> tuple[tuple[int, ...], int]:
        return self.offsets, len(self.pointers)


@dataclass(frozen=True)
class _Encoded:
    outcome: Outcome
    pointer: Tensor
    memory: Tensor


def plan_passes(
    banks: Sequence[Bank], direction: Direction, start: int, stop: int
) -> list[Pass]:
    """The passes of a run, each over the frames that carry any object."""
    if not banks:
        return []
    forward = Pass(1, range(min(bank.first for bank in banks), stop))
    if direction == "forward":
        return [forward]
    if direction == "backward":
        latest = max(bank.last for bank in banks)
        return [Pass(-1, range(latest, start - 1, -1))]
    latest = max(bank.first for bank in banks)
    return [forward, Pass(-1, range(latest - 1, start - 1, -1))]


class LogitsStream:
    """Iterates over a video's frames, giving out :class:`FrameLogits`."""

    def __init__(
        self,
        model: TrackerModel,
        frames: Frames,
        prompts: dict[int, dict[int, FramePrompt]],
        *,
        direction: Direction,
        start: int,
        stop: int,
        compute: Compute,
    ) -> None:
        """Sets out; nothing is computed before the first frame is asked for.

        Args:
            model: the network.
            frames: the video.
            prompts: by object id, then by frame, ascending; checked.
            direction: see :meth:`Propagator.propagate`.
            start: first frame of interest, 0-based.
            stop: one past the last frame of interest.
            compute: how the model is run.
        """
        self._model = model
        self._frames = frames
        self._direction = direction
        self._compute = compute
        self._chunk = compute.object_chunk
        self.banks = [Bank(object_id, prompts[object_id]) for object_id in prompts]
        self._passes = plan_passes(self.banks, direction, start, stop)
        self.pass_index = 0
        self.done_in_pass = 0
        self.space: Tensor | None = None
        cap = compute.max_conditioning_frames
        own = model.max_conditioning
        self._limits = Limits(
            memories=model.num_memories,
            pointers=min(len(frames), model.max_pointers),
            conditioning=cap if own == -1 else min(own, cap),
            kept_pointers=cap,
        )
        self._features: OrderedDict[int, Features] = OrderedDict()
        self._feed: FrameFeed | None = None

    def __iter__(self) -> Iterator[FrameLogits]:
        return self

    def __next__(self) -> FrameLogits:
        while self.pass_index < len(self._passes):
            current = self._passes[self.pass_index]
            if self.done_in_pass < len(current.frames):
                frame = current.frames[self.done_in_pass]
                try:
                    with self._model.arithmetic(self._compute.dtype):
                        return self._visit(frame, current.step)
                except BaseException:
                    self.close()
                    raise
            self._turn()
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Stops reading ahead; going on after it starts reading again."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _turn(self) -> None:
        """Goes on to the next pass."""
        self.close()
        self.pass_index += 1
        self.done_in_pass = 0
        if self.pass_index < len(self._passes):
            step = self._passes[self.pass_index].step
            for bank in self.banks:
                bank.forget(bank.first + step, step, self._limits, returning=False)

    def _active(self, frame: int, step: Step) -> list[Bank]:
        if step == 1:
            return [bank for bank in self.banks if bank.first <= frame]
        if self._direction == "backward":
            return [bank for bank in self.banks if frame <= bank.last]
        return [bank for bank in self.banks if frame < bank.first]

    def _visit(self, frame: int, step: Step) -> FrameLogits:
        feed = self._reading_from(frame)
        banks = self._active(frame, step)
        self._condition(banks, frame, feed)
        tracked = [bank for bank in banks if frame not in bank.prompts]
        encoded = self._track(tracked, frame, step, feed) if tracked else []
        found = dict(zip((bank.object_id for bank in tracked), encoded, strict=True))
        outcomes = [
            bank.outcomes[frame]
            if frame in bank.prompts
            else found[bank.object_id].outcome
            for bank in banks
        ]
        for bank in tracked:
            bank.memories[frame] = found[bank.object_id].memory
            bank.pointers[frame] = found[bank.object_id].pointer
        returning = self._direction == "both" and step == 1
        for bank in banks:
            bank.forget(frame + step, step, self._limits, returning=returning)
        self.done_in_pass += 1
        return FrameLogits(
            frame=frame,
            object_ids=tuple(bank.object_id for bank in banks),
            logits=torch.stack([outcome.logits for outcome in outcomes]),
            presence=torch.stack([outcome.presence for outcome in outcomes]),
            iou=torch.stack([outcome.iou for outcome in outcomes]),
            prompted=frozenset(
                bank.object_id for bank in banks if frame in bank.prompts
            ),
        )

    def _reading_from(self, frame: int) -> FrameFeed:
        if self._feed is None:
            remaining = self._passes[self.pass_index].frames[self.done_in_pass :]
            self._feed = FrameFeed(
                self._frames,
                remaining,
                self._model.image_size,
                pin=self._model.device.type == "cuda",
            )
        self._feed.skip_to(frame)
        return self._feed

    def _features_of(self, frame: int, feed: FrameFeed) -> Features:
        known = self._features.get(frame)
        if known is not None:
            self._features.move_to_end(frame)
            return known
        pixels = normalize(feed.get(frame), self._model.device)
        while len(self._features) >= KEPT_FEATURES:
            self._features.popitem(last=False)
        try:
            features = self._model.encode_image(pixels)
        except torch.cuda.OutOfMemoryError as error:
            raise _too_big("the image encoder") from error
        self._features[frame] = features
        return features

    def _condition(self, banks: Sequence[Bank], frame: int, feed: FrameFeed) -> None:
        """Runs the prompts that this frame looks at and that haven't been run yet."""
        wanted: dict[int, list[Bank]] = {}
        for bank in banks:
            for prompted in bank.missing(frame, self._limits):
                wanted.setdefault(prompted, []).append(bank)
        # The frame itself last, so that its features are still there for tracking.
        for prompted in sorted(wanted, key=lambda other: (other == frame, other)):
            features = self._features_of(prompted, feed)
            kinds: dict[tuple[int, bool], list[Bank]] = {}
            for bank in wanted[prompted]:
                kind = prompt_kind(bank.prompts[prompted])
                kinds.setdefault(kind, []).append(bank)
            for group in kinds.values():
                self._condition_group(group, prompted, features)

    def _condition_group(
        self, banks: Sequence[Bank], frame: int, features: Features
    ) -> None:
        def run(chunk: Sequence[Bank]) -> list[_Encoded]:
            prompts = [bank.prompts[frame] for bank in chunk]
            decoded = self._decode_prompts(prompts, features)
            return self._encode(features, decoded, prompted=True)

        for bank, encoded in zip(banks, self._in_chunks(banks, run), strict=True):
            bank.conditioning[frame] = encoded.memory
            bank.prompt_pointers[frame] = encoded.pointer
            bank.outcomes[frame] = encoded.outcome

    def _decode_prompts(
        self, prompts: Sequence[FramePrompt], features: Features
    ) -> Decoded:
        model = self._model
        point_count, masked = prompt_kind(prompts[0])
        masks = (
            model_masks(prompts, model.image_size).to(model.device) if masked else None
        )
        if masks is not None and not point_count:
            return model.accept_masks(features, masks)
        height, width = self._frames.height, self._frames.width
        points, labels = model_points(prompts, height, width, model.image_size)
        return model.decode(
            features,
            model.without_memory(features).expand(len(prompts), -1, -1, -1),
            points=(points.to(model.device), labels.to(model.device)),
            dense=None if masks is None else model.mask_logits(masks),
            multimask=model.multimask(point_count, starting=True),
        )

    def _track(
        self, banks: Sequence[Bank], frame: int, step: Step, feed: FrameFeed
    ) -> list[_Encoded]:
        features = self._features_of(frame, feed)
        groups: dict[tuple[tuple[int, ...], int], list[_Remembered]] = {}
        for bank in banks:
            remembered = _Remembered(
                bank,
                *bank.recall(frame, step, self._limits),
                *bank.recall_pointers(frame, step, self._limits),
            )
            groups.setdefault(remembered.key, []).append(remembered)
        found: dict[int, _Encoded] = {}
        for group in groups.values():
            results = self._in_chunks(group, lambda chunk: self._step(features, chunk))
            for remembered, encoded in zip(group, results, strict=True):
                found[remembered.bank.object_id] = encoded
        return [found[bank.object_id] for bank in banks]

    def _step(self, features: Features, chunk: Sequence[_Remembered]) -> list[_Encoded]:
        model = self._model
        assert self.space is not None, "a prompt has been encoded before any tracking"
        offsets, dtype = chunk[0].offsets, features.tokens.dtype
        memory = torch.cat([tokens for item in chunk for tokens in item.tokens])
        memory = memory.unflatten(0, (len(chunk), -1))
        positions = model.time_positions(offsets, self.space)
        pointers, pointer_positions = model.pointer_tokens(
            torch.stack([p for item in chunk for p in item.pointers]).unflatten(
                0, (len(chunk), -1)
            ),
            torch.tensor(
                [item.pointer_offsets for item in chunk],
                dtype=torch.float32,
                device=model.device,
            ),
            self._limits.pointers,
        )
        conditioned = model.attend(
            features,
            torch.cat([memory.to(dtype), pointers.to(dtype)], dim=1),
            torch.cat([positions.expand(len(chunk), -1, -1), pointer_positions], dim=1),
            pointer_tokens=pointers.shape[1],
            memory_frames=len(offsets),
        )
        decoded = model.decode(
            features, conditioned, multimask=model.multimask(0, starting=False)
        )
        return self._encode(features, decoded, prompted=False)

    def _encode(
        self, features: Features, decoded: Decoded, *, prompted: bool
    ) -> list[_Encoded]:
        memories, space = self._model.encode_memory(
            features, decoded, prompted=prompted
        )
        if self.space is None:
            self.space = space
        return [
            _Encoded(
                Outcome(decoded.logits[i], decoded.presence[i], decoded.iou[i]),
                decoded.pointer[i],
                memories[i],
            )
            for i in range(len(memories))
        ]

    def _in_chunks(
        self, items: Sequence[Item], run: Callable[[Sequence[Item]], list[Result]]
    ) -> list[Result]:
        """Runs a batch in pieces that fit, smaller ones from the first that doesn't."""
        results: list[Result] = []
        while len(results) < len(items):
            chunk = items[len(results) : len(results) + self._chunk]
            failure: BackendError | None = None
            try:
                results += run(chunk)
                continue
            except torch.cuda.OutOfMemoryError:
                failure = _too_big("one object")
            # Outside the handler, which would keep the failed tensors alive.
            if len(chunk) == 1:
                raise failure
            self._chunk = len(chunk) // 2
            torch.cuda.empty_cache()
        return results


def _too_big(what: str) -> BackendError:
    return BackendError(
        f"the GPU's memory is full: {what} does not fit; choose a smaller image_size "
        "or model, or free the memory. The frames given out so far are good, and the "
        "run can go on from its checkpoint"
    )
