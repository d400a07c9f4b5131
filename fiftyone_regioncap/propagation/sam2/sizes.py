"""Published sizes of SAM 2.1, EdgeTAM and SAM 3's tracker; what they need of a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from transformers import (
    EdgeTamVideoConfig,
    EdgeTamVisionConfig,
    Sam2VideoConfig,
    Sam3TrackerVideoConfig,
    TimmWrapperConfig,
)

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.models.planning import (
    Footprint,
    Phase,
    bytes_of,
    given,
    parameters_of,
    phase,
)
from fiftyone_regioncap.propagation.sam2.configuration import Sam2Options
from fiftyone_regioncap.propagation.sam2.model import (
    EdgeTamModel,
    Sam3TrackerModel,
    TrackerModel,
)
from fiftyone_regioncap.propagation.sam2.stream import KEPT_FEATURES, OBJECTS_AT_ONCE
from fiftyone_regioncap.propagation.sam2.weights import (
    EDGETAM,
    SAM2,
    SAM3_TRACKER,
    Architecture,
    load_config,
    set_image_size,
)

HieraSize = Literal["tiny", "small", "base-plus", "large"]

HIERA: dict[HieraSize, dict[str, Any]] = {
    "tiny": {},
    "small": {
        "blocks_per_stage": [1, 2, 11, 2],
        "global_attention_blocks": [7, 10, 13],
    },
    "base-plus": {
        "hidden_size": 112,
        "embed_dim_per_stage": [112, 224, 448, 896],
        "blocks_per_stage": [2, 3, 16, 3],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "global_attention_blocks": [12, 16, 20],
        "window_positional_embedding_background_size": [14, 14],
    },
    "large": {
        "hidden_size": 144,
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "blocks_per_stage": [2, 6, 36, 4],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
        "global_attention_blocks": [23, 33, 43],
        "window_size_per_stage": [8, 4, 16, 8],
    },
}
"""What the encoders of SAM 2.1's published sizes change of the default's, the tiny."""


def published(size: HieraSize, *, first: bool = False) -> Sam2VideoConfig:
    """Returns the configuration of a published size.

    Args:
        size: Size of the encoder.
        first: Whether it is SAM 2's, which lacks two embeddings of SAM 2.1.
    """
    changes = HIERA[size]
    widths = changes.get("embed_dim_per_stage", [96, 192, 384, 768])
    return Sam2VideoConfig(
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {"model_type": "sam2_hiera_det_model", **changes},
            "backbone_channel_list": widths[::-1],
        },
        enable_temporal_pos_encoding_for_object_pointers=not first,
        enable_occlusion_spatial_embedding=not first,
    )


def published_edgetam() -> EdgeTamVideoConfig:
    """Returns the configuration of EdgeTAM, whose backbone is timm's RepViT-M1."""
    backbone = TimmWrapperConfig(
        architecture="repvit_m1",
        model_args={"features_only": True, "out_indices": [0, 1, 2, 3]},
    )
    vision = EdgeTamVisionConfig(backbone_config=backbone)
    return EdgeTamVideoConfig(vision_config=vision)


def footprint(
    weights: str | None, options: Sam2Options, dtype: torch.dtype
) -> Footprint:
    """Returns what SAM 2 needs; its weights stay float32.

    Args:
        weights: Folder of a checkpoint, or a published name, which ends with its size;
            the tiny one for anything else.
        options: Options of the computation.
        dtype: Numeric type that it computes in.
    """
    name = str(weights or "tiny")
    size: HieraSize = next((one for one in HIERA if name.endswith(one)), "tiny")
    first = "sam2-hiera" in name
    config, name = (
        published(size, first=first),
        f"SAM {2 if first else 2.1} hiera-{size}",
    )
    return _footprint(weights, options, dtype, SAM2, TrackerModel, name, config)


def edgetam_footprint(
    weights: str | None, options: Sam2Options, dtype: torch.dtype
) -> Footprint:
    """Returns what EdgeTAM needs; see :func:`footprint`.

    Raises:
        BackendError: When timm, which has its backbone, is not installed.
    """
    if find_spec("timm") is None:
        raise BackendError("EdgeTAM's backbone is a model of timm: pip install timm")
    config = published_edgetam()
    return _footprint(weights, options, dtype, EDGETAM, EdgeTamModel, "EdgeTAM", config)


def sam3_footprint(
    weights: str | None, options: Sam2Options, dtype: torch.dtype
) -> Footprint:
    """Returns what SAM 3's tracker needs; see :func:`footprint`."""
    name, config = "SAM 3, tracker", Sam3TrackerVideoConfig()
    return _footprint(
        weights, options, dtype, SAM3_TRACKER, Sam3TrackerModel, name, config
    )


def _footprint(
    weights: str | None,
    options: Sam2Options,
    dtype: torch.dtype,
    architecture: Architecture,
    tracker_class: type[TrackerModel],
    name: str,
    config: Any,
) -> Footprint:
    """Returns what a checkpoint's folder needs, or a published name and its config."""
    folder = Path(weights or "").expanduser()
    if weights is not None and folder.is_dir():
        name, config = folder.name, load_config(folder, architecture)
    if options.image_size is not None:
        set_image_size(config, options.image_size)
    with torch.device("meta"):
        model = getattr(transformers, f"{architecture.family}Model")(config)
    parameters, stored = parameters_of(model), bytes_of(model)
    seen, read = (
        bytes_of(part) for part in (model.vision_encoder, model.memory_attention)
    )
    tracker = tracker_class(model.to(dtype))
    encode, tracking, row, scene = _phases(tracker, dtype)

    def phases(rows: int) -> list[Phase]:
        kept = rows * (row - tracking.memory)
        return [
            Phase("encode", encode.flops, seen, KEPT_FEATURES * scene + encode.memory),
            Phase("track", rows * tracking.flops, read + kept, KEPT_FEATURES * scene),
        ]

    return Footprint(
        name=name,
        parameters=parameters,
        weights=stored,
        row=row,
        rows=given(options.object_chunk, OBJECTS_AT_ONCE),
        row_name="objects",
        unit="frames",
        phases=phases,
        made=lambda rows: 1.0,
        image_size=tracker.image_size,
        assumptions=("Decoding of the video and writing of masks are not counted.",),
    )


def object_bytes(tracker: TrackerModel, dtype: torch.dtype) -> int:
    """Returns what an object takes while it is tracked, its full memory included.

    Args:
        tracker: The model, on any device.
        dtype: Numeric type that it computes in.
    """
    with torch.device("meta"):
        model = type(tracker.model)(tracker.config).to(dtype)
    return _phases(type(tracker)(model), dtype)[2]


def _phases(tracker: TrackerModel, dtype: torch.dtype) -> tuple[Phase, Phase, int, int]:
    """Returns both phases, the bytes of an object and those of an encoded frame."""
    side = tracker.image_size
    pixels = torch.empty(1, 3, side, side, dtype=dtype, device="meta")
    encode = phase("encode", 0, lambda: tracker.encode_image(pixels))
    with torch.inference_mode():
        features = tracker.encode_image(pixels)
    memory, pointers = full_memory(tracker, dtype)
    tracking = phase("track", 0, lambda: track(tracker, features, memory, pointers))
    kept = memory.numel() * memory.element_size()
    scene = sum(
        one.numel() * one.element_size()
        for one in (*features.fine, features.tokens, features.positions)
    )
    return encode, tracking, int(kept + tracking.memory), scene


def full_memory(
    tracker: TrackerModel, dtype: torch.dtype, device: str = "meta"
) -> tuple[torch.Tensor, int]:
    """Returns the memory tokens of an object, pointers last, and their number."""
    width = tracker.model.mem_dim
    splits = tracker.model.hidden_dim // width
    pointers = tracker.max_pointers * splits
    tokens = tracker.num_memories * tracker.memory_tokens
    shape = (1, tokens + pointers, width)
    return torch.empty(shape, dtype=dtype, device=device), pointers


def track(tracker: TrackerModel, features: Any, memory: Any, pointers: int) -> Any:
    """Tracks an object to a frame, with a full memory."""
    conditioned = tracker.attend(
        features,
        memory,
        memory,
        pointer_tokens=pointers,
        memory_frames=tracker.num_memories,
    )
    decoded = tracker.decode(
        features, conditioned, multimask=tracker.multimask(0, starting=False)
    )
    return decoded, tracker.encode_memory(features, decoded, prompted=False)
