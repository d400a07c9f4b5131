"""What MobileSAM needs of a GPU."""

from __future__ import annotations

import torch

from fiftyone_regioncap.models.planning import (
    Footprint,
    Phase,
    bytes_of,
    parameters_of,
    phase,
)
from fiftyone_regioncap.propagation.mobilesam.configuration import MobileSamOptions
from fiftyone_regioncap.propagation.mobilesam.segmenter import STRIDE, MobileSam


def footprint(
    weights: str | None, options: MobileSamOptions, dtype: torch.dtype
) -> Footprint:
    """Returns what MobileSAM needs; its weights stay float32.

    Args:
        weights: Not looked at: there is one size.
        options: Options of tracking.
        dtype: Numeric type of the encoder.
    """
    settings = options.settings()
    side = max(settings.side, settings.finest)
    with torch.device("meta"):
        model = MobileSam().eval().requires_grad_(False)
    parameters, stored = parameters_of(model), bytes_of(model)
    height = -(-side * 9 // 16 // STRIDE) * STRIDE
    pixels = torch.empty(1, 3, height, side, dtype=dtype, device="meta")
    encoder = model.image_encoder.to(dtype)
    encode = phase("encode", stored, lambda: encoder(pixels))

    def phases(rows: int) -> list[Phase]:
        return [Phase("encode", encode.flops, stored, encode.memory)]

    return Footprint(
        name="MobileSAM",
        parameters=parameters,
        weights=stored,
        row=0,
        rows={"cuda": 1, "cpu": 1},
        row_name="object",
        unit="frames",
        phases=phases,
        made=lambda rows: 1.0,
        image_size=side,
        assumptions=("Only the encoder is counted, for frames of 16:9.",),
    )
