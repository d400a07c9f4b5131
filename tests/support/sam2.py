"""Provides small random models, and transformers' own sessions to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam3TrackerVideoConfig,
    Sam3TrackerVideoModel,
)
from transformers.models.edgetam_video.modeling_edgetam_video import (
    EdgeTamVideoInferenceSession,
)
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoInferenceSession,
)

from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.propagation.base import Direction
from fiftyone_regioncap.propagation.prompts import merge_prompts
from fiftyone_regioncap.propagation.sam2.frames import normalize, shrink
from fiftyone_regioncap.propagation.sam2.prompts import model_masks, model_points
from tests.support.propagation import Clip

Logits = dict[tuple[int, int], tuple[Tensor, float]]
"""By (frame, object id): low-resolution logits (h, w) and the occlusion logit."""


def _hiera(size: int, hidden: int) -> dict[str, Any]:
    sides = [size // 4, size // 8, size // 16]
    return {
        "model_type": "sam2_vision_model",
        "backbone_config": {
            "model_type": "sam2_hiera_det_model",
            "hidden_size": 16,
            "num_attention_heads": 1,
            "image_size": [size, size],
            "blocks_per_stage": [1, 2, 2, 1],
            "embed_dim_per_stage": [16, 32, 64, 128],
            "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [8, 4, 8, 4],
            "global_attention_blocks": [4],
            "window_positional_embedding_background_size": [7, 7],
        },
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[side, side] for side in sides],
        "fpn_hidden_size": hidden,
    }


def _shared(size: int, hidden: int, patch: int) -> dict[str, Any]:
    grid = size // patch
    return {
        "prompt_encoder_config": {
            "hidden_size": hidden,
            "image_size": size,
            "patch_size": patch,
        },
        "mask_decoder_config": {
            "hidden_size": hidden,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
        "image_size": size,
        "memory_attention_hidden_size": hidden,
        "memory_attention_num_layers": 2,
        "memory_attention_rope_feat_sizes": [grid, grid],
        "memory_encoder_hidden_size": hidden,
        "memory_encoder_output_channels": 64,
        "mask_downsampler_embed_dim": hidden,
        "memory_fuser_embed_dim": hidden,
        "memory_fuser_intermediate_dim": 64,
    }


def _sam2(**changes: Any) -> Sam2VideoModel:
    size, hidden = changes.pop("size", 128), changes.pop("hidden", 128)
    config = Sam2VideoConfig(
        vision_config=_hiera(size, hidden),
        **{"memory_attention_feed_forward_hidden_size": 128}
        | _shared(size, hidden, 16)
        | changes,
    )
    return Sam2VideoModel(config)


def _edgetam(**changes: Any) -> EdgeTamVideoModel:
    size, hidden = 128, 128
    config = EdgeTamVideoConfig(
        vision_config=_hiera(size, hidden),
        memory_attention_mlp_hidden_size=128,
        memory_attention_rope_k_sizes=[4, 4],
        perceiver_resampler_num_latents=8,
        perceiver_resampler_num_latents_2d=16,
        perceiver_resampler_mlp_intermediate_size=64,
        **_shared(size, hidden, 16) | changes,
    )
    return EdgeTamVideoModel(config)


def _sam3(**changes: Any) -> Sam3TrackerVideoModel:
    size, hidden = 112, 128
    shared = _shared(size, hidden, 14)
    config = Sam3TrackerVideoConfig(
        vision_config={
            "model_type": "sam3_vision_model",
            "backbone_config": {
                "model_type": "sam3_vit_model",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": size,
                "patch_size": 14,
                "window_size": 4,
                "global_attn_indexes": [1],
                "pretrain_image_size": 56,
            },
            "fpn_hidden_size": hidden,
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        },
        memory_attention_feed_forward_hidden_size=128,
        **shared | changes,
    )
    return Sam3TrackerVideoModel(config)


MODELS: dict[str, Callable[..., Any]] = {
    "sam2": _sam2,
    "edgetam": _edgetam,
    "sam3-tracker": _sam3,
}
SESSIONS = {
    "Sam2VideoModel": Sam2VideoInferenceSession,
    "EdgeTamVideoModel": EdgeTamVideoInferenceSession,
    "Sam3TrackerVideoModel": Sam3TrackerVideoInferenceSession,
}


def randomise(model: Any, seed: int = 0) -> Any:
    """Sets random weights that matter: a fresh model's zeros would hide mistakes."""
    # Gains below 1 keep rounding from growing from frame to frame; mask logits are
    # then some +-15, as trained models have them.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1 and "embed" not in name:
                weight.copy_(noise * 0.7 / weight[0].numel() ** 0.5)
            elif "norm" not in name:
                weight.copy_(noise * 0.3)
        # Objects come and go.
        presence = model.mask_decoder.pred_obj_score_head.proj_out
        presence.weight.mul_(10)
        presence.bias.fill_(2.2)
    return model.eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Builds a small random model: ``make_model("sam2", num_maskmem=4)``."""

    def make(kind: str = "sam2", seed: int = 0, **changes: Any) -> Any:
        torch.manual_seed(seed)  # for buffers
        return randomise(MODELS[kind](**changes), seed)

    return make


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Clip]:
    """Builds a video of drifting random blobs."""

    def make(length: int, height: int = 90, width: int = 140, seed: int = 1) -> Clip:
        random = np.random.default_rng(seed)
        coarse = random.integers(0, 256, (6, 8 + length, 3), dtype=np.uint8)
        images = []
        for index in range(length):
            window = coarse[:, index : index + 8]
            image = np.kron(window, np.ones((height // 6 + 1, width // 8 + 1, 1)))
            images.append(image[:height, :width].astype(np.uint8))
        return Clip(images, ())

    return make


def _reference(
    model: Any, clip: Clip, prompts: Sequence[Prompt], direction: Direction
) -> Logits:
    """Runs transformers' own session, one for every object."""
    height, width = clip.height, clip.width
    video = torch.stack(
        [
            normalize(
                shrink(image, model.image_size),
                torch.device("cpu"),
            )[0]
            for image in clip.frames
        ]
    )
    results: Logits = {}
    for object_id, frames in merge_prompts(prompts).items():
        session = SESSIONS[type(model).__name__](
            video=video, video_height=height, video_width=width, dtype=torch.float32
        )
        index = session.obj_id_to_idx(object_id)
        for frame, prompt in frames.items():
            if prompt.mask is not None:
                mask = model_masks([prompt], model.image_size)
                session.add_mask_inputs(index, frame, mask)
            else:
                points, labels = model_points([prompt], height, width, model.image_size)
                session.add_point_inputs(
                    index,
                    frame,
                    {"point_coords": points[None], "point_labels": labels[None]},
                )
            session.obj_with_new_inputs = [object_id]
            model(session, frame_idx=frame)
        passes = {
            "forward": [(min(frames), False)],
            "backward": [(max(frames), True)],
            "both": [(min(frames), False), (min(frames), True)],
        }[direction]
        for start, reverse in passes:
            for output in model.propagate_in_video_iterator(
                session, start_frame_idx=start, reverse=reverse
            ):
                results[output.frame_idx, object_id] = (
                    output.pred_masks[0, 0].clone(),
                    float(output.object_score_logits.flatten()[0]),
                )
    return results


@pytest.fixture(scope="session")
def reference() -> Callable[..., Logits]:
    """Runs transformers' session: ``reference(model, clip, prompts, direction)``."""
    return _reference
