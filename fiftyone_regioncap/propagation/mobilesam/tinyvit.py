"""TinyViT-5M, the image encoder of MobileSAM.

K. Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers",
ECCV 2022; C. Zhang et al., "Faster Segment Anything: Towards Lightweight SAM for Mobile
Applications", arXiv:2306.14289. Module names are those of the published
``mobile_sam.pt`` so that its weights load as they are.
"""

from __future__ import annotations

import itertools
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE: Final = 16
"""Pixels of the encoder's input per cell of its embedding."""

CHANNELS: Final = 256
"""Channels of the embedding."""

_WIDTHS: Final = (64, 128, 160, 320)
_DEPTHS: Final = (2, 2, 6, 2)
_HEADS: Final = (2, 4, 5, 10)
_WINDOWS: Final = (7, 7, 14, 7)
# MobileSAM keeps the last stage at the third's resolution.
_DOWNSAMPLING: Final = (2, 2, 1)


_FUSED: Final = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise"
)


def convolve_gelu(convolution: ConvNorm, x: Tensor) -> Tensor:
    """Applies a convolution and GELU, in one pass over memory on a CPU.

    oneDNN evaluates the activation while a tile is in the cache: the depthwise
    convolutions of the first stage take a third of the time, equal up to rounding.
    """
    layer = convolution.c
    fusible = x.device.type == "cpu" and not torch.is_grad_enabled() and _FUSED
    if not fusible or not isinstance(convolution.bn, nn.Identity):
        return F.gelu(convolution(x))
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    bias = layer.bias
    assert bias is not None  # of the norm that was folded into it
    return torch.ops.mkldnn._convolution_pointwise(
        x.to(kind or x.dtype), layer.weight.to(kind or x.dtype),
        bias.to(kind or x.dtype), layer.padding, layer.stride, layer.dilation,
        layer.groups, "gelu", [], "none",
    )  # fmt: skip


class ConvNorm(nn.Module):
    """A convolution without bias and its batch norm, foldable into one convolution."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.c: nn.Conv2d = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.bn: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H', W')."""
        return self.bn(self.c(x))

    def fold(self) -> None:
        """Puts the norm into the convolution: the same function, one pass less."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.c = nn.utils.fuse_conv_bn_eval(self.c, self.bn)
            self.bn = nn.Identity()


class Stem(nn.Module):
    """Two strided convolutions from pixels to the first stage's grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, width // 2, 3, 2), nn.GELU(), ConvNorm(width // 2, width, 3, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 3, H, W) to (B, width, H / 4, W / 4)."""
        first, _, second = self.seq
        assert isinstance(first, ConvNorm)
        return second(convolve_gelu(first, x))


class InvertedBottleneck(nn.Module):
    """The convolutional block of the first stage (MBConv of MobileNetV2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.conv1 = ConvNorm(width, hidden, 1)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape (B, width, H, W)."""
        hidden = convolve_gelu(self.conv2, convolve_gelu(self.conv1, x))
        return F.gelu(x + self.conv3(hidden))


class Downsampling(nn.Module):
    """Widens the channels and divides the grid by ``stride`` between two stages."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, 1)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        return self.conv3(convolve_gelu(self.conv2, convolve_gelu(self.conv1, x)))


class WindowAttention(nn.Module):
    """Self-attention inside square windows with a learned bias per relative offset."""

    offsets: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        # One bias for each pair of absolute distances; the table numbers them in the
        # order in which a row-major walk over all pairs of cells first meets them.
        cells = list(itertools.product(range(window), repeat=2))
        numbers: dict[tuple[int, int], int] = {}
        table = [
            numbers.setdefault((abs(y1 - y2), abs(x1 - x2)), len(numbers))
            for (y1, x1), (y2, x2) in itertools.product(cells, cells)
        ]
        self.attention_biases = nn.Parameter(torch.zeros(heads, len(numbers)))
        index = torch.tensor(table).view(len(cells), len(cells))
        self.register_buffer("offsets", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape (windows, cells, width)."""
        windows, cells, width = x.shape
        qkv = self.qkv(self.norm(x)).view(windows, cells, self.heads, 3, -1)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
        bias = self.attention_biases[:, self.offsets].to(q.dtype)[None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(windows, cells, width))


class MLP(nn.Module):
    """Norm, widening, GELU, narrowing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape (..., width)."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Window attention, a depthwise convolution across windows, and an MLP."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape (B, width, H, W)."""
        x = x.permute(0, 2, 3, 1)
        x = x + self._attend(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.mlp(x)
        return x.permute(0, 3, 1, 2)

    def _attend(self, x: Tensor) -> Tensor:
        """Cuts (B, H, W, width) into windows, attends, and puts them together again."""
        batch, height, width, channels = x.shape
        side = self.window
        # The published weights were trained with zeros attended to at the border.
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        x = x.view(batch, rows, side, columns, side, channels).transpose(2, 3)
        x = self.attn(x.reshape(-1, side * side, channels))
        x = x.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        x = x.reshape(batch, rows * side, columns * side, channels)
        return x[:, :height, :width]


class Stage(nn.Module):
    """Blocks at one resolution and the step down to the next."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, H, W) to (B, C', H', W')."""
        return self.downsample(self.blocks(x))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """MobileSAM's image encoder: (B, 3, H, W) to (B, 256, H / 16, W / 16).

    There is no absolute position in it, so any H and W divisible by 16 will do; it was
    trained at 1024.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = Stem(_WIDTHS[0])
        stages: list[Stage] = []
        for stage, width in enumerate(_WIDTHS):
            blocks: list[nn.Module] = [
                InvertedBottleneck(width)
                if stage == 0
                else Block(width, _HEADS[stage], _WINDOWS[stage])
                for _ in range(_DEPTHS[stage])
            ]
            last = stage == len(_WIDTHS) - 1
            down = (
                nn.Identity()
                if last
                else Downsampling(width, _WIDTHS[stage + 1], _DOWNSAMPLING[stage])
            )
            stages.append(Stage(blocks, down))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(_WIDTHS[-1], CHANNELS, 1, bias=False),
            ChannelNorm(CHANNELS, eps=1e-6),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
            ChannelNorm(CHANNELS, eps=1e-6),
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes normalized images.

        Args:
            pixels: Normalized images, float (B, 3, H, W), H and W divisible by 16.

        Returns:
            float (B, 256, H / 16, W / 16), and the third stage's output, float
            (B, 160, H / 16, W / 16).
        """
        x = self.patch_embed(pixels)
        first, second, third, fourth = self.layers
        assert isinstance(third, Stage)
        middle = third.blocks(second(first(x)))
        return self.neck(fourth(third.downsample(middle))), middle

    def fold(self) -> None:
        """Folds every batch norm into its convolution, for inference."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
