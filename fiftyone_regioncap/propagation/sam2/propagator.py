"""The propagators over the streaming loop: SAM 2, EdgeTAM, SAM 3's tracker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.propagation.base import (
    Checkpoint,
    PropagationRequest,
    PropagatorInfo,
)
from fiftyone_regioncap.propagation.sam2.checkpoint import load_state, save_state
from fiftyone_regioncap.propagation.sam2.masks import masks_of
from fiftyone_regioncap.propagation.sam2.model import (
    EdgeTamModel,
    Sam3TrackerModel,
    TrackerModel,
)
from fiftyone_regioncap.propagation.sam2.prompts import fingerprint, merge_prompts
from fiftyone_regioncap.propagation.sam2.segmenter import FrameSegmenter
from fiftyone_regioncap.propagation.sam2.stream import (
    Compute,
    FrameLogits,
    LogitsStream,
)
from fiftyone_regioncap.propagation.sam2.weights import Architecture, load_weights

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


class MaskStream:
    """A run over a video; see :class:`Propagation`."""

    def __init__(
        self,
        stream: LogitsStream,
        *,
        height: int,
        width: int,
        overlap: bool,
        fill_hole_area: int,
        identity: bytes,
    ) -> None:
        self._stream = stream
        self._height = height
        self._width = width
        self._overlap = overlap
        self._fill_hole_area = fill_hole_area
        self._identity = identity

    def __iter__(self) -> Iterator[FrameMasks]:
        return self

    def __next__(self) -> FrameMasks:
        return self._masks(next(self._stream))

    @torch.inference_mode()
    def _masks(self, found: FrameLogits) -> FrameMasks:
        masks = masks_of(
            found.logits,
            self._height,
            self._width,
            overlap=self._overlap,
            fill_hole_area=self._fill_hole_area,
        )
        scores = (found.presence.sigmoid() * found.iou.clamp(0, 1)).tolist()
        objects = {
            object_id: ObjectMask(mask, score)
            for object_id, mask, score in zip(
                found.object_ids, masks, scores, strict=True
            )
        }
        return FrameMasks(found.frame, objects, found.prompted)

    def checkpoint(self) -> Checkpoint:
        """See :meth:`Propagation.checkpoint`."""
        return save_state(self._stream, self._identity)


class StreamingPropagator:
    """Carries prompts through a video with a model of SAM 2's kind.

    Memory holds what the model can look at (prompted frames, the last frames, object
    pointers) and nothing else; the image encoder runs once a frame, all else in batches
    of objects.
    """

    name: ClassVar[str]
    license: ClassVar[str]
    architecture: ClassVar[Architecture]
    tracker: ClassVar[type[TrackerModel]]

    def __init__(
        self,
        model: Any,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        object_chunk: int = 16,
        max_conditioning_frames: int = 32,
        fill_hole_area: int = 0,
        model_name: str = "",
        revision: str = "",
    ) -> None:
        """Takes a loaded transformers model; :meth:`from_pretrained` loads one.

        Args:
            model: a ``Sam2VideoModel`` (``EdgeTamVideoModel``,
                ``Sam3TrackerVideoModel``) in float32; moved to ``device``.
            device: where it runs; None takes CUDA where there is one, else the CPU.
            dtype: of the arithmetic; None takes bfloat16 on CUDA and float32
                elsewhere. The weights stay float32.
            compile: whether to compile the image encoder, which takes minutes once.
            object_chunk: how many objects go through the model at once; less when the
                GPU's memory runs full.
            max_conditioning_frames: how many prompted frames of one object are looked
                at, at most (the nearest ones), unless the model sets a lower limit.
            fill_hole_area: holes of up to that many low-resolution pixels are filled;
                SAM 2's own video predictor has 8, transformers none.
            model_name: the published name of the weights.
            revision: of the weights.
        """
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        place = torch.device(device)
        model = model.to(place)
        if place.type == "cuda":
            model.vision_encoder.to(memory_format=torch.channels_last)
        if dtype is None:
            dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
        self._model = self.tracker(model, compile=compile)
        self._compute = Compute(dtype, object_chunk, max_conditioning_frames)
        self._fill_hole_area = fill_hole_area
        self._info = PropagatorInfo(self.name, model_name, revision, self.license)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        image_size: int | None = None,
        compile: bool = False,
        revision: str | None = None,
        object_chunk: int = 16,
        max_conditioning_frames: int = 32,
        fill_hole_area: int = 0,
    ) -> Self:
        """Loads a checkpoint.

        Args:
            path_or_repo: a folder written by ``save_pretrained``, or a repository of
                the Hugging Face hub, taken from the cache when it is there.
            device: see the constructor.
            dtype: see the constructor.
            image_size: side in pixels of the square that frames are resized to; None
                takes the model's own (1024). Smaller is faster and less exact.
            compile: see the constructor.
            revision: commit, tag or branch of the repository.
            object_chunk: see the constructor.
            max_conditioning_frames: see the constructor.
            fill_hole_area: see the constructor.

        Raises:
            WeightsError: when the weights are absent, corrupt, or of another
                architecture, or the hub cannot be reached.
        """
        loaded = load_weights(
            path_or_repo, cls.architecture, image_size=image_size, revision=revision
        )
        return cls(
            loaded.model,
            device=device,
            dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
            compile=compile,
            object_chunk=object_chunk,
            max_conditioning_frames=max_conditioning_frames,
            fill_hole_area=fill_hole_area,
            model_name=loaded.name,
            revision=loaded.revision,
        )

    @property
    def info(self) -> PropagatorInfo:
        """Name, weights and license."""
        return self._info

    def propagate(self, request: PropagationRequest) -> MaskStream:
        """Starts or resumes a run; see :meth:`Propagator.propagate`."""
        stream, identity = self._start(request)
        return MaskStream(
            stream,
            height=request.frames.height,
            width=request.frames.width,
            overlap=request.overlap,
            fill_hole_area=self._fill_hole_area,
            identity=identity,
        )

    def logits(self, request: PropagationRequest) -> LogitsStream:
        """The same run as :meth:`propagate`, before it becomes masks.

        Returns:
            an iterator over :class:`FrameLogits`.
        """
        return self._start(request)[0]

    def segmenter(self) -> FrameSegmenter:
        """The image part of the model, for :func:`propagation.proposals.propose`."""
        return FrameSegmenter(self._model, self._compute.dtype)

    def _start(self, request: PropagationRequest) -> tuple[LogitsStream, bytes]:
        frames, checkpoint = request.frames, request.checkpoint
        merged = merge_prompts(request.prompts)
        stream = LogitsStream(
            self._model,
            frames,
            merged,
            direction=request.direction,
            start=request.start,
            stop=request.end,
            compute=self._compute,
        )
        run = (
            self._info,
            self._model.image_size,
            self._compute.dtype,
            self._compute.max_conditioning_frames,
            (len(frames), frames.height, frames.width),
            (request.direction, request.start, request.end),
        )
        identity = repr(run).encode() + fingerprint(merged)
        if checkpoint is not None:
            load_state(stream, checkpoint, identity, self._model.device)
        return stream, identity


class Sam2Propagator(StreamingPropagator):
    """SAM 2 and 2.1: ``facebook/sam2-hiera-*``, ``facebook/sam2.1-hiera-*``."""

    name = "sam2"
    license = "Apache-2.0"
    architecture = Architecture.SAM2
    tracker = TrackerModel


class EdgeTamPropagator(StreamingPropagator):
    """EdgeTAM; its published backbone needs the package ``timm``."""

    name = "edgetam"
    license = "Apache-2.0"
    architecture = Architecture.EDGETAM
    tracker = EdgeTamModel


class Sam3TrackerPropagator(StreamingPropagator):
    """The tracker of SAM 3, ``facebook/sam3`` (gated)."""

    name = "sam3-tracker"
    license = "LicenseRef-SAM"
    architecture = Architecture.SAM3_TRACKER
    tracker = Sam3TrackerModel
