"""The modules of a SAM 2 style tracker, called for many objects in one batch.

Transformers runs its session object by object. The modules themselves take batches, so
the functions here redo the glue around them with the object as the batch dimension;
numbers stay those of the session (Ravi et al., "SAM 2: Segment Anything in Images and
Videos", 2024).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NO_OBJECT = -1024.0
"""Mask logit where the occlusion head says that the object is not in the frame."""


@dataclass(frozen=True)
class Features:
    """Features of one frame from the image encoder, shared by all objects.

    Attributes:
        fine: The two high-resolution levels for the mask decoder, each (1, c, h, w).
        tokens: Tokens of the coarsest level, (h * w, 1, C).
        positions: Position encoding of the coarsest level, (h * w, 1, C).
    """

    fine: tuple[Tensor, ...]
    tokens: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Decoded:
    """The mask decoder's answer for B objects.

    Attributes:
        logits: Low-resolution mask logits, float32 (B, h, w).
        large: Mask logits at the model's image size, (B, 1, S, S), for the memory
            encoder.
        pointer: Object pointers, (B, C).
        presence: Logits of the occlusion head, float32 (B,); above 0 means visible.
        iou: Predicted IoU of the masks in [0, 1], float32 (B,).
    """

    logits: Tensor
    large: Tensor
    pointer: Tensor
    presence: Tensor
    iou: Tensor


class TrackerModel:
    """A ``Sam2VideoModel`` (or one built like it), batched over objects.

    The model's weights are shared and nothing of it is changed.

    Attributes:
        model: The transformers model, in eval mode.
        image_size: Side of the square that frames are resized to, in pixels.
        num_memories: Number of frames the memory attends to, conditioning frames
            counted as one.
        max_pointers: Number of frames whose object pointers it attends to.
        max_conditioning: Number of conditioning frames it attends to; -1 for all.
    """

    memory_dtype: torch.dtype | None = torch.bfloat16
    """Numeric type that memories are stored in; None for the computed one."""

    def __init__(self, model: Any, *, compile: bool = False) -> None:
        self.model = model.eval()
        self.config = model.config
        self.image_size = int(model.image_size)
        self.num_memories = int(model.num_maskmem)
        self.max_pointers = int(model.config.max_object_pointers_in_encoder)
        self.max_conditioning = int(model.config.max_cond_frame_num)
        self.grid = tuple(int(side) for side in model.backbone_feature_sizes[-1])
        encoder = _without_unread_positions(model.vision_encoder, self.grid)
        self._encoder = torch.compile(encoder, dynamic=False) if compile else encoder
        with torch.inference_mode():
            self._image_positions = model.get_image_wide_positional_embeddings()

    @property
    def device(self) -> torch.device:
        """Returns the device of the weights."""
        return self.model.no_memory_embedding.device

    @property
    def memory_tokens(self) -> int:
        """Returns the number of tokens that remember an object on one frame."""
        return math.prod(self.grid)

    @contextlib.contextmanager
    def arithmetic(self, dtype: torch.dtype) -> Iterator[None]:
        """Runs inference in a dtype: float32, or a smaller one through autocast."""
        small = dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(
                self.device.type, dtype=dtype if small else None, enabled=small
            ),
        ):
            yield

    def _levels(self, output: Any) -> tuple[list[Tensor], Tensor]:
        """Returns the encoder's levels, fine to coarse, and the last's positions."""
        return list(output.fpn_hidden_states), output.fpn_position_encoding[-1]

    def encode_image(self, pixels: Tensor) -> Features:
        """Runs the image encoder once for all objects.

        Args:
            pixels: Normalized image, float (1, 3, S, S).
        """
        levels, positions = self._levels(self._encoder(pixels, return_dict=True))
        decoder = self.model.mask_decoder
        return Features(
            fine=(decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1])),
            tokens=levels[-1].flatten(2).permute(2, 0, 1),
            positions=positions.flatten(2).permute(2, 0, 1),
        )

    def raw(self, features: Features) -> Tensor:
        """Returns the coarsest level as a map, (1, C, h, w)."""
        return features.tokens.permute(1, 2, 0).unflatten(2, self.grid)

    def without_memory(self, features: Features) -> Tensor:
        """Returns the coarsest level for a frame that starts a track, (1, C, h, w)."""
        tokens = features.tokens + self.model.no_memory_embedding
        return tokens.permute(1, 2, 0).unflatten(2, self.grid)

    def time_positions(self, offsets: Sequence[int], space: Tensor) -> Tensor:
        """Returns positions of the memories of frames ``offsets`` frames away.

        Args:
            offsets: Distances in frames; 0 for conditioning frames.
            space: Position encoding of the tokens of one memory, (n, C).

        Returns:
            (len(offsets) * n, C).
        """
        table = self.model.memory_temporal_positional_encoding
        return torch.cat([space + table[offset - 1, 0] for offset in offsets])

    def pointer_tokens(
        self, pointers: Tensor, offsets: Tensor, horizon: int
    ) -> tuple[Tensor, Tensor]:
        """Returns object pointers as memory tokens.

        Args:
            pointers: Object pointers, (B, P, C).
            offsets: Distances in frames along the pass, float32 (B, P).
            horizon: Number of frames whose pointers may be used.

        Returns:
            Tokens and positions, each (B, P * splits, memory channels).
        """
        batch, count, channels = pointers.shape
        width = self.model.mem_dim
        if self.config.enable_temporal_pos_encoding_for_object_pointers:
            relative = offsets / max(horizon - 1, 1)
            waves = _sine_positions(relative, channels).to(pointers.dtype)
            project = self.model.temporal_positional_encoding_projection_layer
            positions = project(waves)
        else:
            positions = pointers.new_zeros(batch, count, width)
        splits = channels // width if width < channels else 1
        tokens = pointers.reshape(batch, count * splits, -1)
        return tokens, positions.repeat_interleave(splits, dim=1)

    def attend(
        self,
        features: Features,
        memory: Tensor,
        positions: Tensor,
        *,
        pointer_tokens: int,
        memory_frames: int,
    ) -> Tensor:
        """Conditions a frame's features on each object's memory.

        Args:
            features: Features of the frame.
            memory: Memory tokens, (B, n, c), pointers last.
            positions: Position encoding of the memory tokens, (B or 1, n, c).
            pointer_tokens: Number of pointer tokens among the n.
            memory_frames: Number of frames that the others come from.

        Returns:
            (B, C, h, w).
        """
        batch = memory.shape[0]
        attended = self.model.memory_attention(
            current_vision_features=features.tokens.expand(-1, batch, -1),
            current_vision_position_embeddings=features.positions.expand(-1, batch, -1),
            memory=memory.transpose(0, 1),
            memory_posision_embeddings=positions.transpose(0, 1),
            num_object_pointer_tokens=pointer_tokens,
            **self._attention_arguments(memory_frames),
        )
        return attended[0].transpose(1, 2).unflatten(2, self.grid)

    def _attention_arguments(self, memory_frames: int) -> dict[str, int]:
        return {}

    def multimask(self, point_count: int, *, starting: bool) -> bool:
        """Returns whether the decoder should offer several masks.

        Args:
            point_count: Number of points of the prompt, a box counted as two; 0 while
                tracking.
            starting: Whether the frame starts or restarts the track.
        """
        config = self.config
        return bool(
            config.multimask_output_in_sam
            and (starting or config.multimask_output_for_tracking)
            and config.multimask_min_pt_num <= point_count
            and point_count <= config.multimask_max_pt_num
        )

    def decode(
        self,
        features: Features,
        conditioned: Tensor,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        dense: Tensor | None = None,
        multimask: bool,
    ) -> Decoded:
        """Runs the prompt encoder and the mask decoder.

        Args:
            features: Features of the frame.
            conditioned: Features conditioned on memory, (B, C, h, w).
            points: Points, float (B, N, 2) in model pixels, and labels, int (B, N): 1
                on, 0 off, 2 and 3 the corners of a box. None while tracking.
            dense: Mask logits to refine, (B, 1, h, w), or None.
            multimask: Whether to choose the best of several masks by predicted IoU.
        """
        model = self.model
        batch = conditioned.shape[0]
        if points is None:
            coordinates = conditioned.new_zeros(batch, 1, 1, 2)
            labels = torch.full_like(coordinates[..., 0], -1, dtype=torch.int32)
        else:
            coordinates, labels = points[0].unsqueeze(1), points[1].unsqueeze(1)
        size = tuple(model.prompt_encoder.mask_input_size)
        if dense is not None and tuple(dense.shape[-2:]) != size:
            dense = _shrink(dense, size)
        sparse, dense = model.prompt_encoder(
            input_points=coordinates,
            input_labels=labels,
            input_boxes=None,
            input_masks=dense,
        )
        masks, ious, tokens, presence = model.mask_decoder(
            image_embeddings=conditioned,
            image_positional_embeddings=self._image_positions.expand(batch, -1, -1, -1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=[
                level.expand(batch, -1, -1, -1) for level in features.fine
            ],
        )
        best = ious.argmax(dim=-1)[:, 0]
        rows = torch.arange(batch, device=best.device)
        logits = masks[rows, 0, best]
        # A single mask may come with a single token or with several, as the decoder
        # falls back on another mask when the first is unstable.
        token = tokens[rows, 0, best if tokens.shape[2] > 1 else 0]
        visible = presence[:, 0] > 0
        logits = torch.where(visible[..., None], logits, NO_OBJECT)
        pointer = model.object_pointer_proj(token)
        present = visible.to(pointer.dtype)
        pointer = present * pointer + (1 - present) * model.no_object_pointer
        return Decoded(
            logits=logits.float(),
            large=self._enlarge(logits),
            pointer=pointer,
            presence=presence[:, 0, 0].float(),
            iou=ious[rows, 0, best].float(),
        )

    def _enlarge(self, logits: Tensor) -> Tensor:
        side = (self.image_size, self.image_size)
        large = F.interpolate(
            logits.unsqueeze(1).float(), size=side, mode="bilinear", align_corners=False
        )
        return large.to(logits.dtype)

    def accept_masks(self, features: Features, masks: Tensor) -> Decoded:
        """Takes masks as the answer; only the object pointer is computed.

        Args:
            features: Features of the frame.
            masks: Masks of 0 or 1, float (B, 1, S, S).
        """
        raw = self.raw(features)
        masks = masks.to(raw.dtype)
        large = masks * 20.0 - 10.0
        size = tuple(self.model.prompt_encoder.mask_input_size)
        batch = masks.shape[0]
        pointer = self.decode(
            features,
            raw.expand(batch, -1, -1, -1),
            dense=self.model.mask_downsample(masks),
            multimask=True,
        ).pointer
        present = masks.flatten(1).any(dim=1, keepdim=True).to(pointer.dtype)
        pointer = present * pointer + (1 - present) * self.model.no_object_pointer
        return Decoded(
            logits=_shrink(large, size)[:, 0].float(),
            large=large,
            pointer=pointer,
            presence=(present * 20.0 - 10.0)[:, 0].float(),
            iou=torch.ones(batch, device=masks.device),
        )

    def mask_logits(self, masks: Tensor) -> Tensor:
        """Returns low-resolution logits of given masks, to be refined by points.

        Args:
            masks: Masks of 0 or 1, float (B, 1, S, S).

        Returns:
            (B, 1, h, w).
        """
        return _shrink(
            masks * 20.0 - 10.0, tuple(self.model.prompt_encoder.mask_input_size)
        )

    def encode_memory(
        self, features: Features, decoded: Decoded, *, prompted: bool
    ) -> tuple[Tensor, Tensor]:
        """Makes the memory of a frame for each object.

        Args:
            features: Features of the frame.
            decoded: The objects' masks on it.
            prompted: Whether the masks come from prompts; they are then made binary.

        Returns:
            Tokens (B, n, c) and their positions (n, c).
        """
        maps, positions = self._memory_maps(features, decoded, prompted=prompted)
        tokens = maps.flatten(2).transpose(1, 2)
        if self.memory_dtype is not None:
            tokens = tokens.to(self.memory_dtype).contiguous()
        space = positions[0].to(decoded.large.dtype).flatten(1).transpose(0, 1)
        return tokens, space

    def _memory_maps(
        self, features: Features, decoded: Decoded, *, prompted: bool
    ) -> tuple[Tensor, Tensor]:
        large = decoded.large
        size = tuple(4 * side for side in self.model.prompt_encoder.mask_input_size)
        if tuple(large.shape[2:]) != size:
            large = _shrink(large, size)
        masks = (large > 0).to(large.dtype) if prompted else torch.sigmoid(large)
        masks = masks * self.config.sigmoid_scale_for_mem_enc
        masks = masks + self.config.sigmoid_bias_for_mem_enc
        raw = self.raw(features).expand(masks.shape[0], -1, -1, -1)
        maps, positions = self.model.memory_encoder(raw, masks)
        occluded = self.model.occlusion_spatial_embedding_parameter
        if occluded is not None:
            absent = (decoded.presence <= 0).to(maps.dtype)[:, None, None, None]
            maps = maps + absent * occluded[..., None, None]
        return maps, positions


class EdgeTamModel(TrackerModel):
    """EdgeTAM: a perceiver squeezes memories to few tokens (Zhou et al., 2025)."""

    memory_dtype = None

    @property
    def memory_tokens(self) -> int:
        """Returns the number of latents of one frame."""
        perceiver = self.model.spatial_perceiver
        return int(perceiver.num_latents_1d + perceiver.num_latents_2d)

    def _attention_arguments(self, memory_frames: int) -> dict[str, int]:
        return {"num_spatial_memory_tokens": memory_frames}

    def encode_memory(
        self, features: Features, decoded: Decoded, *, prompted: bool
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`TrackerModel.encode_memory`."""
        maps, positions = self._memory_maps(features, decoded, prompted=prompted)
        dtype = decoded.large.dtype
        perceiver = self.model.spatial_perceiver
        tokens, spaces = [], []
        if perceiver.num_latents_1d > 0:
            everywhere, space = perceiver._forward_1d(maps, positions.to(dtype))
            tokens.append(everywhere)
            spaces.append(space[0])
        if perceiver.num_latents_2d > 0:
            windowed, space = self._squeeze_windows(maps)
            tokens.append(windowed)
            spaces.append(space)
        return torch.cat(tokens, dim=1).to(dtype), torch.cat(spaces).to(dtype)

    def _squeeze_windows(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Returns one latent per window; transformers does so for a single object only.

        Returns:
            Tokens (B, n, c) and their positions (n, c).
        """
        perceiver = self.model.spatial_perceiver
        batch, channels, height, _ = maps.shape
        side = math.isqrt(perceiver.num_latents_2d)
        window = height // side
        windows = maps.unflatten(3, (side, window)).unflatten(2, (side, window))
        windows = windows.permute(0, 2, 4, 3, 5, 1)
        windows = windows.reshape(-1, window * window, channels)
        latents = perceiver.latents_2d.repeat(batch, 1).unsqueeze(1)
        for layer in perceiver.layers:
            latents = layer(latents, windows, positional_encoding=None)
        shape = torch.Size((1, channels, side, side))
        space = perceiver.positional_encoding(shape, maps.device, latents.dtype)
        tokens = perceiver.layer_norm(latents.view(batch, side * side, channels))
        return tokens, space[0].flatten(1).transpose(0, 1)


class Sam3TrackerModel(TrackerModel):
    """SAM 3's tracker: SAM 2's loop; its encoder gives one level more than is used."""

    def _levels(self, output: Any) -> tuple[list[Tensor], Tensor]:
        return list(output.fpn_hidden_states[:-1]), output.fpn_position_encoding[-2]


class _Positions(nn.Module):
    """Computes position encodings of the one level that is read; others are zeros.

    Those of the finest level would cost more than the mask decoder on a CPU.
    """

    def __init__(self, positions: nn.Module, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.positions = positions
        self.grid = grid

    def forward(
        self, shape: torch.Size, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        if tuple(shape[-2:]) == self.grid:
            return self.positions(shape, device, dtype)
        return torch.zeros(1, device=device, dtype=dtype).expand(shape)


def _without_unread_positions(encoder: nn.Module, grid: tuple[int, ...]) -> nn.Module:
    """Returns the encoder, weights shared, without position encodings nobody reads."""
    neck = _shallow(encoder.neck)
    neck.position_encoding = _Positions(neck.position_encoding, grid)
    encoder = _shallow(encoder)
    encoder.neck = neck
    return encoder


def _shallow(module: Any) -> Any:
    clone = copy.copy(module)
    clone._modules = dict(module._modules)
    return clone


def _shrink(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    resized = F.interpolate(
        maps.float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized.to(maps.dtype)


def _sine_positions(values: Tensor, width: int) -> Tensor:
    """Encodes scalars (...) by sines to (..., width) (Vaswani et al., 2017)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.unsqueeze(-1) / 10000 ** (2 * (steps // 2) / half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
