"""The loop over frames: mask logits of many objects in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.prompts import merge_prompts
from fiftyone_regioncap.propagation.sam2.bank import Bank, Limits, Outcome, Step
from fiftyone_regioncap.propagation.sam2.frames import FrameFeed, normalize
from fiftyone_regioncap.propagation.sam2.model import Decoded, Features, TrackerModel
from fiftyone_regioncap.propagation.sam2.prompts import (
    model_masks,
    model_points,
    prompt_kind,
)
from fiftyone_regioncap.propagation.stream import Pass, PassIterator, State

OBJECTS_AT_ONCE = {"cuda": 16, "cpu": 16}
"""Objects in a batch, where memory allows."""

KEPT_FEATURES = 2
"""Frames whose image features are kept: the current one and the last prompted one."""

CONTRADICTION = 0.5
"""IoU of an object's carried mask and its prompt, below which they contradict."""

MAX_CARRIED_LOGIT = 32.0
"""Bound of the carried mask's logits that points correct, as SAM 2 sets it."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class FrameLogits:
    """The model's answer for one frame, before it becomes masks.

    Attributes:
        frame: 0-based frame index.
        object_ids: Ids of the B objects on it.
        logits: Low-resolution mask logits, float32 (B, h, w); above 0 is object.
        presence: Logits of the occlusion head, float32 (B,); above 0 is visible.
        iou: Predicted IoU in [0, 1], float32 (B,).
        prompted: Ids of the objects that were prompted on this frame.
    """

    frame: int
    object_ids: tuple[int, ...]
    logits: Tensor
    presence: Tensor
    iou: Tensor
    prompted: frozenset[int]


@dataclass(frozen=True)
class Compute:
    """Settings of the computation.

    Attributes:
        dtype: Numeric type of the arithmetic: float32, or a smaller one by autocast.
        object_chunk: Maximum number of objects in a batch.
        max_conditioning_frames: Maximum number of prompted frames of an object to
            attend to, where the model itself sets no lower limit.
        forget_contradicted: Whether a prompt that contradicts what is remembered of its
            object hides it from then on.
    """

    dtype: torch.dtype
    object_chunk: int
    max_conditioning_frames: int
    forget_contradicted: bool = False


@dataclass(frozen=True)
class _Remembered:
    """One object's memories for one frame; objects of one ``key`` make a batch."""

    bank: Bank
    offsets: tuple[int, ...]
    tokens: list[Tensor]
    pointer_offsets: list[int]
    pointers: list[Tensor]
    correction: Prompt | None

    @property
    def key(self) -> tuple[tuple[int, ...], int, int]:
        points = 0 if self.correction is None else prompt_kind(self.correction)[0]
        return self.offsets, len(self.pointers), points


@dataclass(frozen=True)
class _Encoded:
    outcome: Outcome
    pointer: Tensor
    memory: Tensor


class LogitsStream(PassIterator[FrameLogits]):
    """Iterates over a video's frames, emitting :class:`FrameLogits`."""

    def __init__(
        self,
        model: TrackerModel,
        request: PropagationRequest,
        compute: Compute,
        identity: object = None,
    ) -> None:
        """Starts or resumes a run.

        Args:
            model: Model that computes the logits.
            request: Video, prompts and range of the run.
            compute: Settings of the computation.
            identity: Value that distinguishes the model from others, by its ``repr``.
        """
        cap = compute.max_conditioning_frames
        facts = [identity, model.image_size, str(compute.dtype), cap]
        facts += ["forgets"] * compute.forget_contradicted
        super().__init__(request, tuple(facts))
        self._model = model
        self._compute = compute
        self._chunk = compute.object_chunk
        self._returns = len(self.passes) > 1
        self._banks = {
            object_id: Bank(
                object_id,
                {t: p for t, p in by_frame.items() if not p.negative_only},
                {t: p for t, p in by_frame.items() if p.negative_only},
            )
            for object_id, by_frame in merge_prompts(request.prompts).items()
        }
        self._space: Tensor | None = None
        own = model.max_conditioning
        self._limits = Limits(
            memories=model.num_memories,
            pointers=min(len(request.frames), model.max_pointers),
            conditioning=cap if own == -1 else min(own, cap),
            kept_pointers=cap,
        )
        self._features: OrderedDict[int, Features] = OrderedDict()
        self._feed: FrameFeed | None = None
        self.resume(request.checkpoint)

    def close(self) -> None:
        """Stops reading ahead; going on after it starts reading again."""
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def _end_pass(self) -> None:
        self.close()
        if self.pass_index < len(self.passes):
            for bank in self._banks.values():
                bank.restarted = None
                bank.forget(bank.first - 1, -1, self._limits, returning=False)

    def _state(self) -> State:
        tensors = {} if self._space is None else {"space": self._space}
        for object_id, bank in self._banks.items():
            tensors |= {f"{object_id}/{k}": v for k, v in bank.state().items()}
        return {name: _to_array(tensor) for name, tensor in tensors.items()}

    def _restore(self, state: State) -> None:
        tensors = {name: _to_tensor(a, self._model.device) for name, a in state.items()}
        self._space = tensors.pop("space", None)
        by_object: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            object_id, _, inner = name.partition("/")
            by_object.setdefault(int(object_id), {})[inner] = tensor
        for number, own in by_object.items():
            self._banks[number].restore(own)

    def _visit(self, current: Pass, frame: int) -> FrameLogits | None:
        emitted = current.emitted(frame)
        banks = [bank for bank in self._banks.values() if bank.object_id in emitted]
        if not banks:
            return None
        step: Step = 1 if current.frames.step == 1 else -1
        try:
            with self._model.arithmetic(self._compute.dtype):
                return self._look(banks, frame, step)
        except BaseException:
            self.close()
            raise

    def _look(self, banks: Sequence[Bank], frame: int, step: Step) -> FrameLogits:
        feed = self._reading_from(frame)
        self._condition(banks, frame, feed)
        if self._compute.forget_contradicted:
            self._find_contradictions(banks, frame, step, feed)
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
        returning = self._returns and step == 1
        for bank in banks:
            bank.forget(frame + step, step, self._limits, returning=returning)
        return FrameLogits(
            frame=frame,
            object_ids=tuple(bank.object_id for bank in banks),
            logits=torch.stack([outcome.logits for outcome in outcomes]),
            presence=torch.stack([outcome.presence for outcome in outcomes]),
            iou=torch.stack([outcome.iou for outcome in outcomes]),
            prompted=frozenset(
                bank.object_id
                for bank in banks
                if frame in bank.prompts or frame in bank.corrections
            ),
        )

    def _find_contradictions(
        self, banks: Sequence[Bank], frame: int, step: Step, feed: FrameFeed
    ) -> None:
        """Hides the memory of objects whose prompt here is unlike their carried mask.

        An object that was lost contradicts nothing.
        """
        prompted = [
            bank
            for bank in banks
            if frame in bank.prompts
            and bank.recall(frame, step, self._limits, carried=True)[1]
        ]
        if not prompted:
            return
        carried = self._track(prompted, frame, step, feed, carried=True)
        for bank, encoded in zip(prompted, carried, strict=True):
            one = encoded.outcome.logits > 0
            if encoded.outcome.presence <= 0 or not one.any():
                continue
            other = bank.outcomes[frame].logits > 0
            shared, both = (one & other).sum(), (one | other).sum()
            if shared < CONTRADICTION * both:
                bank.restarted = frame, step

    def _reading_from(self, frame: int) -> FrameFeed:
        if self._feed is None:
            remaining = self.passes[self.pass_index].frames[self.done_in_pass :]
            self._feed = FrameFeed(
                self.frames,
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

    def _decode_prompts(self, prompts: Sequence[Prompt], features: Features) -> Decoded:
        model = self._model
        point_count, masked = prompt_kind(prompts[0])
        masks = (
            model_masks(prompts, model.image_size).to(model.device) if masked else None
        )
        if masks is not None and not point_count:
            return model.accept_masks(features, masks)
        return model.decode(
            features,
            model.without_memory(features).expand(len(prompts), -1, -1, -1),
            points=self._points(prompts),
            dense=None if masks is None else model.mask_logits(masks),
            multimask=model.multimask(point_count, starting=True),
        )

    def _track(
        self,
        banks: Sequence[Bank],
        frame: int,
        step: Step,
        feed: FrameFeed,
        *,
        carried: bool = False,
    ) -> list[_Encoded]:
        """Tracks objects to a frame; ``carried`` leaves out their prompts on it."""
        features = self._features_of(frame, feed)
        groups: dict[tuple[tuple[int, ...], int, int], list[_Remembered]] = {}
        for bank in banks:
            remembered = _Remembered(
                bank,
                *bank.recall(frame, step, self._limits, carried=carried),
                *bank.recall_pointers(frame, step, self._limits, carried=carried),
                bank.corrections.get(frame),
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
        assert self._space is not None, "a prompt has been encoded before any tracking"
        offsets, dtype = chunk[0].offsets, features.tokens.dtype
        memory = torch.cat([tokens for item in chunk for tokens in item.tokens])
        memory = memory.unflatten(0, (len(chunk), -1))
        positions = model.time_positions(offsets, self._space)
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
        corrections = [i.correction for i in chunk if i.correction is not None]
        if corrections:
            limit = MAX_CARRIED_LOGIT
            decoded = model.decode(
                features,
                conditioned,
                points=self._points(corrections),
                dense=decoded.logits.unsqueeze(1).clamp(-limit, limit).to(dtype),
                multimask=model.multimask(len(corrections[0].signs), starting=False),
            )
        return self._encode(features, decoded, prompted=bool(corrections))

    def _points(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """Returns points and labels of prompts of one kind, on the model's device."""
        model, frames = self._model, self.frames
        points, labels = model_points(
            prompts, frames.height, frames.width, model.image_size
        )
        return points.to(model.device), labels.to(model.device)

    def _encode(
        self, features: Features, decoded: Decoded, *, prompted: bool
    ) -> list[_Encoded]:
        memories, space = self._model.encode_memory(
            features, decoded, prompted=prompted
        )
        if self._space is None:
            self._space = space
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
        "or model, or free the memory. The frames emitted so far are good, and the "
        "run can go on from its checkpoint"
    )


def _to_array(tensor: Tensor) -> NDArray[np.generic]:
    """Returns a tensor as an array; NumPy has no bfloat16, whose bits go as int16."""
    host = tensor.detach().contiguous().cpu()
    if host.dtype == torch.bfloat16:
        host = host.view(torch.int16)
    return host.numpy().copy()


def _to_tensor(array: NDArray[np.generic], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    if tensor.dtype == torch.int16:
        tensor = tensor.view(torch.bfloat16)
    return tensor.to(device)
