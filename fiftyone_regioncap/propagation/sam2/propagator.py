"""The propagators over the streaming loop: SAM 2, EdgeTAM, SAM 3's tracker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.models.devices import choose_device, choose_dtype
from fiftyone_regioncap.models.planning import rows_on
from fiftyone_regioncap.models.registry import ModelCard
from fiftyone_regioncap.propagation.base import (
    Checkpoint,
    PropagationRequest,
    PropagatorInfo,
)
from fiftyone_regioncap.propagation.sam2 import configuration, weights
from fiftyone_regioncap.propagation.sam2.configuration import Sam2Options
from fiftyone_regioncap.propagation.sam2.masks import masks_of
from fiftyone_regioncap.propagation.sam2.model import (
    EdgeTamModel,
    Sam3TrackerModel,
    TrackerModel,
)
from fiftyone_regioncap.propagation.sam2.segmenter import FrameSegmenter
from fiftyone_regioncap.propagation.sam2.sizes import object_bytes
from fiftyone_regioncap.propagation.sam2.stream import (
    OBJECTS_AT_ONCE,
    Compute,
    FrameLogits,
    LogitsStream,
)

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


class MaskStream:
    """Iterates over the masks of a run; see :class:`Propagation`."""

    def __init__(
        self, stream: LogitsStream, request: PropagationRequest, fill_hole_area: int
    ) -> None:
        self._stream = stream
        self._request = request
        self._fill_hole_area = fill_hole_area

    def __iter__(self) -> Iterator[FrameMasks]:
        return self

    def __next__(self) -> FrameMasks:
        return self._masks(next(self._stream))

    @torch.inference_mode()
    def _masks(self, found: FrameLogits) -> FrameMasks:
        masks = masks_of(
            found.logits,
            self._request.frames.height,
            self._request.frames.width,
            overlap=self._request.overlap,
            fill_hole_area=self._fill_hole_area,
        )
        scores = (found.presence.sigmoid() * found.iou.clamp(0, 1)).tolist()
        objects = dict(
            zip(found.object_ids, map(ObjectMask, masks, scores), strict=True)
        )
        return FrameMasks(found.frame, objects, found.prompted)

    def checkpoint(self) -> Checkpoint:
        """See :meth:`Propagation.checkpoint`."""
        return self._stream.checkpoint()


class SamVideoPropagator:
    """Carries prompts through a video with a model of SAM 2's kind.

    Memory holds what the model can look at (prompted frames, the last frames, object
    pointers) and nothing else; the image encoder runs once a frame, all else in batches
    of objects.
    """

    card: ClassVar[ModelCard]
    architecture: ClassVar[weights.Architecture]
    tracker: ClassVar[type[TrackerModel]]

    def __init__(
        self,
        model: Any,
        options: Sam2Options | None = None,
        *,
        device: str | torch.device | None = None,
        model_name: str = "",
        revision: str = "",
    ) -> None:
        """Takes a loaded transformers model; :meth:`from_pretrained` loads one.

        Args:
            model: A ``Sam2VideoModel`` (``EdgeTamVideoModel``,
                ``Sam3TrackerVideoModel``) in float32; moved to ``device``. Its weights
                stay float32, whatever the arithmetic is.
            options: Options of the model's computation; None for the defaults.
            device: Torch device to run on; None for CUDA where there is one, else the
                CPU.
            model_name: Published name of the weights.
            revision: Revision of the weights.
        """
        self.options = options = options or Sam2Options()
        place = choose_device(device)
        model = model.to(place)
        if place.type == "cuda":
            model.vision_encoder.to(memory_format=torch.channels_last)
        self._model = self.tracker(model, compile=options.compile)
        dtype = choose_dtype(options.dtype, place)
        self._compute = Compute(
            dtype,
            options.object_chunk or self._objects_at_once(place, dtype),
            options.max_conditioning_frames,
            options.forget_contradicted,
        )
        self._fill_hole_area = options.fill_hole_area
        card = self.card
        self._info = PropagatorInfo(card.name, model_name, revision, card.license)

    def _objects_at_once(self, device: torch.device, dtype: torch.dtype) -> int:
        """Returns how many objects a batch has, where the user doesn't say."""
        at_most = OBJECTS_AT_ONCE.get(device.type, OBJECTS_AT_ONCE["cpu"])
        if device.type != "cuda":
            return at_most
        return rows_on(device, object_bytes(self._model, dtype), at_most)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str,
        *,
        device: str | torch.device | None = None,
        options: Sam2Options | None = None,
    ) -> Self:
        """Loads a checkpoint.

        Args:
            path_or_repo: A folder written by ``save_pretrained``, or a repository of
                the Hugging Face hub, taken from the cache when it is there.
            device: Torch device to run on; None for CUDA where there is one, else the
                CPU.
            options: Options of loading and computation; None for the defaults.

        Raises:
            WeightsError: When the weights are absent, corrupt, or of another
                architecture, or the hub cannot be reached.
        """
        options = options or Sam2Options()
        loaded = weights.load_weights(
            path_or_repo,
            cls.architecture,
            image_size=options.image_size,
            revision=options.revision,
        )
        return cls(
            loaded.model,
            options,
            device=device,
            model_name=loaded.name,
            revision=loaded.revision,
        )

    @property
    def info(self) -> PropagatorInfo:
        """Returns the name, weights and license."""
        return self._info

    def propagate(self, request: PropagationRequest) -> MaskStream:
        """Starts or resumes a run; see :meth:`Propagator.propagate`."""
        return MaskStream(self.logits(request), request, self._fill_hole_area)

    def logits(self, request: PropagationRequest) -> LogitsStream:
        """Starts the same run as :meth:`propagate`, before logits become masks.

        Returns:
            An iterator over :class:`FrameLogits`.
        """
        return LogitsStream(self._model, request, self._compute, self._info)

    def segmenter(self) -> FrameSegmenter:
        """Returns the model's image part, for :func:`propagation.proposals.propose`."""
        return FrameSegmenter(self._model, self._compute.dtype)


class Sam2Propagator(SamVideoPropagator):
    """SAM 2 and 2.1: ``facebook/sam2-hiera-*``, ``facebook/sam2.1-hiera-*``."""

    card = configuration.SAM2
    architecture = weights.SAM2
    tracker = TrackerModel


class EdgeTamPropagator(SamVideoPropagator):
    """EdgeTAM; its published backbone needs the package ``timm``."""

    card = configuration.EDGETAM
    architecture = weights.EDGETAM
    tracker = EdgeTamModel


class Sam3TrackerPropagator(SamVideoPropagator):
    """The tracker of SAM 3, ``facebook/sam3`` (gated)."""

    card = configuration.SAM3_TRACKER
    architecture = weights.SAM3_TRACKER
    tracker = Sam3TrackerModel
