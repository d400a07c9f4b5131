"""MobileSAM: an image and prompts in, masks out.

C. Zhang et al., "Faster Segment Anything: Towards Lightweight SAM for Mobile
Applications", arXiv:2306.14289. The image encoder is :mod:`.tinyvit`; prompt encoder
and mask decoder are SAM's (A. Kirillov et al., "Segment Anything", ICCV 2023), as
implemented in transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.sam.configuration_sam import SamConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder

from fiftyone_regioncap.core.errors import WeightsError
from fiftyone_regioncap.core.types import Frame
from fiftyone_regioncap.models.devices import choose_device, has_bfloat16
from fiftyone_regioncap.propagation.mobilesam.tinyvit import STRIDE, TinyViT

INPUT_SIDE: Final = 1024
"""The longest side that the published weights were trained at, in pixels."""

MASK_STRIDE: Final = 4
"""Pixels of the encoder's input per pixel of a low-resolution mask."""

CERTAIN: Final = 10.0
"""Logit of a pixel that is surely an object's; of other pixels, its negative."""

_MEAN: Final = (123.675, 116.28, 103.53)
_STD: Final = (58.395, 57.12, 57.375)

# The ImageNet classifier that TinyViT was distilled with; no part of MobileSAM.
_UNUSED: Final = re.compile(r"image_encoder\.(norm_head|head)\.")

# From the published names to those of transformers' modules, applied in this order.
_RENAMINGS: Final = (
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$",
     "prompt_encoder.shared_embedding.positional_embedding"),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.",
     "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.",
     "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"(\.layers\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.1\.", r"\1.layers.0."),
    (r"(mlps\.\d+|iou_prediction_head)\.layers\.2\.", r"\1.proj_out."),
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Describes how a frame lies in the encoder's input.

    The frame is scaled so that its longest side is ``side`` pixels and lies in the
    upper left corner; what is left of the last cells is padding.

    Attributes:
        height: Height of the frame in pixels.
        width: Width of the frame in pixels.
        side: Longest side of the encoder's input in pixels, a multiple of 16.
    """

    height: int
    width: int
    side: int = INPUT_SIDE

    @property
    def scale(self) -> float:
        """Returns the number of input pixels per frame pixel."""
        return self.side / max(self.height, self.width)

    @property
    def content(self) -> tuple[int, int]:
        """Returns (height, width) of the scaled frame in input pixels."""
        return (
            max(1, math.floor(self.height * self.scale + 0.5)),
            max(1, math.floor(self.width * self.scale + 0.5)),
        )

    @property
    def cells(self) -> tuple[int, int]:
        """Returns (rows, columns) of the embedding's cells that show the frame."""
        height, width = self.content
        return math.ceil(height / STRIDE), math.ceil(width / STRIDE)

    @property
    def whole(self) -> Part:
        """Returns all cells."""
        rows, columns = self.cells
        return Part(range(rows), range(columns))


@dataclass(frozen=True)
class Part:
    """Represents a rectangle of cells of a grid.

    Attributes:
        rows: Range of its rows.
        columns: Range of its columns.
    """

    rows: range
    columns: range

    def slices(self, scale: int = 1) -> tuple[slice, slice]:
        """Returns what indexes it in an array with ``scale`` values a cell."""
        y, x = (
            slice(cells.start * scale, cells.stop * scale)
            for cells in (self.rows, self.columns)
        )
        return y, x

    @property
    def shape(self) -> tuple[int, int]:
        """Returns the numbers of its rows and columns."""
        return len(self.rows), len(self.columns)

    def within(self, other: Part) -> Part:
        """Returns what another part has of it, numbered from the other's corner."""
        y, x = (
            range(
                max(mine.start, whole.start) - whole.start,
                min(mine.stop, whole.stop) - whole.start,
            )
            for mine, whole in (
                (self.rows, other.rows),
                (self.columns, other.columns),
            )
        )
        return Part(y, x)


@dataclass(frozen=True)
class Encoding:
    """Holds the image encoder's output for a part of a frame.

    Attributes:
        embedding: Input of the mask decoder, float (256, rows, columns).
        stage: Output of the third stage, float (160, rows, columns), which separates
            objects that the embedding confuses.
        part: Cells that were encoded.
    """

    embedding: Tensor
    stage: Tensor
    part: Part


@dataclass(frozen=True)
class Decoded:
    """Holds the mask decoder's output for N objects.

    Attributes:
        logits: Mask logits, float (N, H, W) at the frame's size; above 0 on the object.
        low: Mask logits before enlarging, float (N, rows, columns), with a stride of 4
            input pixels.
        iou: Predicted IoU of each mask, float (N,).
    """

    logits: Tensor
    low: Tensor
    iou: Tensor


class MobileSam(nn.Module):
    """MobileSAM's three parts; see :meth:`from_pretrained`.

    Only the part of the input that holds the frame is encoded and decoded unless
    ``padded``: the padding that SAM adds to make it square costs half the time of a
    wide frame and changes masks by less than a pixel's width.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        config = SamConfig()
        # Parts used on their own don't choose one, and would say so at each start.
        config.mask_decoder_config._attn_implementation = "sdpa"
        self.image_encoder = TinyViT()
        self.prompt_encoder = SamPromptEncoder(config)
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        self.register_buffer("mean", torch.tensor(_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(_STD), persistent=False)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device | None = None
    ) -> MobileSam:
        """Loads the published weights.

        Args:
            path: Path of ``mobile_sam.pt``.
            device: Torch device to run on; None for a GPU where there is one.

        Returns:
            The model, ready for inference.

        Raises:
            WeightsError: When the file is absent, unreadable, or of another model.
        """
        try:
            published = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise WeightsError(
                f"{path}: no such file; leave the weights out to have them downloaded"
            ) from error
        except Exception as error:
            raise WeightsError(
                f"{path}: not a readable checkpoint ({error}); delete it and fetch "
                "mobile_sam.pt again"
            ) from error
        model = cls()
        try:
            model.load_state_dict(_renamed(published))
        except (AttributeError, RuntimeError) as error:
            raise WeightsError(
                f"{path}: these are not MobileSAM's weights; give mobile_sam.pt "
                f"({str(error)[:500]})"
            ) from error
        model.eval().requires_grad_(False)
        model.image_encoder.fold()
        for parameter in model.image_encoder.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        return model.to(choose_device(device))

    @property
    def device(self) -> torch.device:
        """Returns the device that the model runs on."""
        return self.prompt_encoder.no_mask_embed.weight.device

    def encode(
        self,
        frame: Frame,
        *,
        side: int = INPUT_SIDE,
        padded: bool = False,
        half: bool = False,
    ) -> Tensor:
        """Embeds a frame.

        Args:
            frame: RGB frame, uint8 (H, W, 3).
            side: Longest side of the encoder's input in pixels, a multiple of 16.
            padded: Whether to pad the input to a square as SAM does.
            half: Whether to compute in bfloat16.

        Returns:
            float (256, side / 16, side / 16) when padded, else (256, rows, columns) of
            the cells that hold the frame.
        """
        return self.encode_stages(frame, side=side, padded=padded, half=half).embedding

    @torch.inference_mode()
    def encode_stages(
        self,
        frame: Frame,
        *,
        side: int = INPUT_SIDE,
        padded: bool = False,
        half: bool = False,
        part: Part | None = None,
    ) -> Encoding:
        """Encodes a frame or a part of it.

        Args:
            frame: RGB frame, uint8 (H, W, 3).
            side: Longest side of the whole frame in the encoder's input, in pixels.
            padded: Whether to pad the input to a square as SAM does.
            half: Whether to compute in bfloat16.
            part: Cells to encode; None for all.
        """
        grid = Grid(frame.shape[0], frame.shape[1], side)
        height, width = grid.content
        shrinking = grid.scale < 1
        resized = cv2.resize(
            frame,
            (width, height),
            interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR,
        )
        part = part or grid.whole
        shown = resized[part.slices(STRIDE)]
        pixels = torch.from_numpy(shown).to(self.device).float()
        pixels = ((pixels - self.mean) / self.std).permute(2, 0, 1)[None]
        rows, columns = (side // STRIDE,) * 2 if padded else part.shape
        height, width = shown.shape[:2]
        pixels = F.pad(pixels, (0, columns * STRIDE - width, 0, rows * STRIDE - height))
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            embedding, stage = self.image_encoder(pixels)
        return Encoding(embedding[0].float(), stage[0].float(), part)

    @torch.inference_mode()
    def decode(
        self,
        embedding: Tensor,
        grid: Grid,
        *,
        boxes: NDArray[np.floating] | None = None,
        points: NDArray[np.floating] | None = None,
        point_signs: NDArray[np.integer] | None = None,
        mask_logits: Tensor | None = None,
        best_of_three: bool = False,
    ) -> Decoded:
        """Segments N objects of one frame.

        At least one of ``boxes`` and ``points`` is given.

        Args:
            embedding: Embedding from :meth:`encode`, float (256, rows, columns).
            grid: Cell grid of the encoded frame.
            boxes: Boxes as pixel edges in the frame, (N, 4).
            points: Points as x, y in pixels of the frame, (N, P, 2).
            point_signs: Signs of the points, (N, P): 1 on the object, 0 off it, -1 for
                no point.
            mask_logits: Logits of an earlier mask, float (N, rows * 4, columns * 4).
            best_of_three: Whether to decode three masks (part, object, group) and take
                the one with the highest predicted IoU; for a single point.

        Returns:
            Masks and their scores.
        """
        rows, columns = embedding.shape[1:]
        seen = Part(range(rows), range(columns))
        sparse = []
        if points is not None:
            assert point_signs is not None
            sparse.append(self._embed_points(points, point_signs, grid, boxes is None))
        if boxes is not None:
            sparse.append(self._embed_boxes(boxes, grid))
        tokens = torch.cat(sparse, dim=2)
        count = tokens.shape[0]
        if mask_logits is None:
            dense = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
            dense = dense.expand(count, -1, rows, columns)
        else:
            dense = self.prompt_encoder.mask_embed(mask_logits[:, None])
        low, iou = self.mask_decoder(
            image_embeddings=embedding.expand(count, -1, -1, -1),
            image_positional_embeddings=self._positions(seen, grid).expand(
                count, -1, -1, -1
            ),
            sparse_prompt_embeddings=tokens,
            dense_prompt_embeddings=dense,
            multimask_output=best_of_three,
        )
        low, iou = low[:, 0], iou[:, 0]
        best = iou.argmax(dim=1)
        each = torch.arange(count, device=self.device)
        low, iou = low[each, best], iou[each, best]
        return Decoded(enlarge(low, grid, MASK_STRIDE), low, iou)

    @torch.inference_mode()
    def candidates(
        self,
        encoding: Encoding,
        grid: Grid,
        *,
        boxes: NDArray[np.floating],
        mask_logits: Tensor,
        parts: Sequence[Part],
        targets: Tensor,
    ) -> Tensor:
        """Returns all four masks of the decoder for N objects, at low resolution.

        For each object, the decoder sees only a part of the frame, which takes as much
        less time as its cells are fewer. Eight objects at once take half the time of
        one after the other.

        Args:
            encoding: Encoding of the frame.
            grid: Cell grid of the frame.
            boxes: Boxes as pixel edges in the frame, (N, 4).
            mask_logits: Logits of earlier masks in the parts, float (N, rows * 4,
                columns * 4).
            parts: Cells that the decoder sees of each object, all of them encoded, and
                as many rows and columns for each object.
            targets: Mean embedding of each object where it was prompted, float (N,
                256), which is added to the decoder's tokens as in R. Zhang et al.,
                "Personalize Segment Anything Model with One Shot", ICLR 2024.

        Returns:
            Logits, float (N, 4, rows * 4, columns * 4).
        """
        decoder, images = self.mask_decoder, []
        for part in parts:
            y, x = part.within(encoding.part).slices()
            images.append(encoding.embedding[:, y, x])
        outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens, image = decoder.transformer(
            point_embeddings=torch.cat(
                [
                    outputs.expand(len(parts), 1, -1, -1),
                    self._embed_boxes(boxes, grid),
                ],
                dim=2,
            ),
            image_embeddings=torch.stack(images)
            + self.prompt_encoder.mask_embed(mask_logits[:, None]),
            image_positional_embeddings=torch.cat(
                [self._positions(part, grid) for part in parts]
            ),
            attention_similarity=None,
            target_embedding=targets[:, None, None],
        )
        # transformers' own forward gives either the first mask or the other three.
        image = image.transpose(2, 3).reshape(
            len(parts), -1, len(parts[0].rows), len(parts[0].columns)
        )
        image = decoder.upscale_layer_norm(decoder.upscale_conv1(image))
        image = decoder.activation(decoder.upscale_conv2(decoder.activation(image)))
        filters = torch.stack(
            [
                layers(tokens[:, 0, 1 + n])
                for n, layers in enumerate(decoder.output_hypernetworks_mlps)
            ],
            dim=1,
        )
        return torch.einsum("bnc,bchw->bnhw", filters, image)

    def _embed_points(
        self,
        points: NDArray[np.floating],
        signs: NDArray[np.integer],
        grid: Grid,
        alone: bool,
    ) -> Tensor:
        """Embeds points as (N, 1, P, 256); SAM appends an empty one without a box."""
        at = torch.as_tensor(points, dtype=torch.float32, device=self.device)
        at = (at[:, None] * grid.scale + 0.5) / grid.side
        kinds = torch.as_tensor(signs, dtype=torch.int64, device=self.device)[:, None]
        if alone:
            at, kinds = F.pad(at, (0, 0, 0, 1)), F.pad(kinds, (0, 1), value=-1)
        encoder = self.prompt_encoder
        table = torch.cat(
            [encoder.point_embed[0].weight, encoder.point_embed[1].weight]
        )
        embedded = encoder.shared_embedding(at) + table[kinds.clamp(min=0)]
        return torch.where(
            kinds[..., None] < 0, encoder.not_a_point_embed.weight, embedded
        )

    def _embed_boxes(self, boxes: NDArray[np.floating], grid: Grid) -> Tensor:
        """Embeds boxes as tokens (N, 1, 2, 256)."""
        corners = torch.as_tensor(boxes, dtype=torch.float32, device=self.device)
        corners = (corners.view(-1, 1, 2, 2) * grid.scale + 0.5) / grid.side
        kinds = [self.prompt_encoder.point_embed[k].weight for k in (2, 3)]
        return self.prompt_encoder.shared_embedding(corners) + torch.cat(kinds)

    def _positions(self, part: Part, grid: Grid) -> Tensor:
        """Returns the position encoding (1, 256, rows, columns) of some cells."""
        y, x = (
            (torch.arange(cells.start, cells.stop, device=self.device) + 0.5)
            * (STRIDE / grid.side)
            for cells in (part.rows, part.columns)
        )
        at = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        return self.prompt_encoder.shared_embedding(at).permute(2, 0, 1)[None]


def enlarge(low: Tensor, grid: Grid, stride: int) -> Tensor:
    """Enlarges low-resolution masks to the frame.

    Args:
        low: Low-resolution masks, float (N, h, w), starting at the frame's upper left
            corner.
        grid: Cell grid of the frame.
        stride: Number of pixels of the encoder's input per pixel of ``low``.

    Returns:
        float (N, H, W) at the frame's size.
    """
    size = (low.shape[1] * stride, low.shape[2] * stride)
    full = F.interpolate(low[:, None], size, mode="bilinear", align_corners=False)
    height, width = grid.content
    full = full[..., :height, :width]
    return F.interpolate(
        full, (grid.height, grid.width), mode="bilinear", align_corners=False
    )[:, 0]


def half_is_fast(device: torch.device) -> bool:
    """Returns whether a device computes in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return has_bfloat16(device)
    if device.type != "cpu":
        return False
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _renamed(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the published tensors under the names of this module's parts."""
    renamed = {}
    for name, tensor in published.items():
        if _UNUSED.match(name):
            continue
        for pattern, replacement in _RENAMINGS:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
