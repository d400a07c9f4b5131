"""Compares DynRefer on all regions of a frame together and one by one.

Random weights, of a size that a laptop's CPU manages, or with ``--published`` of the
published one (4.2 billion parameters: a GPU with 24 GB). Both ways describe the same
regions, one after the other in turns; the best time of each counts, and the captions
must be the same. A table a device; CUDA is skipped where there is none. On a CPU it is
the processor's time, which other programs on the machine don't disturb.

    python -m benchmarks.dynrefer --regions 32
    python -m benchmarks.dynrefer --regions 32 --published --device cuda
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Blip2QFormerConfig, Blip2VisionConfig, T5Config

from fiftyone_regioncap.captioning.dynrefer.captioner import (
    DynReferCaptioner,
    stack_views,
)
from fiftyone_regioncap.captioning.dynrefer.configuration import DynReferOptions
from fiftyone_regioncap.captioning.dynrefer.controls import Controls
from fiftyone_regioncap.captioning.dynrefer.heads import HeadSizes
from fiftyone_regioncap.captioning.dynrefer.model import (
    DynReferConfig,
    DynReferModel,
    place,
)
from fiftyone_regioncap.captioning.dynrefer.sizes import published
from fiftyone_regioncap.captioning.dynrefer.texts import Attribute
from fiftyone_regioncap.captioning.views import nested_views, to_gray
from fiftyone_regioncap.core.types import RegionClip

T = TypeVar("T")

WORDS = 1000
"""Words in the stand-in for T5's vocabulary."""


def small() -> DynReferConfig:
    """Returns an eighth of the width, a quarter of the depth, and the same heads."""
    return DynReferConfig(
        vision=Blip2VisionConfig(
            hidden_size=176,
            intermediate_size=768,
            num_hidden_layers=10,
            num_attention_heads=2,
        ),
        qformer=Blip2QFormerConfig(
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=2,
            encoder_hidden_size=176,
        ),
        language=T5Config(
            vocab_size=WORDS,
            d_model=256,
            d_kv=64,
            d_ff=640,
            num_layers=6,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        ),
        head=HeadSizes(width=64, hidden=256, text_width=128),
    )


def build(config: DynReferConfig, device: str) -> DynReferCaptioner:
    """Returns a random captioner with as many names as the published one."""
    torch.manual_seed(0)
    with torch.device(device):
        model = DynReferModel(config).eval().requires_grad_(False)
        model.query_tokens.normal_()
    model = place(model, torch.device(device), None)

    def embed(texts: Sequence[str]) -> torch.Tensor:
        return torch.randn(len(texts), config.head.text_width, device=device)

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "|": 3, ",": 4}
    words |= {f"w{number}": number for number in range(len(words), WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        tokenizer.save(str(path))
        controls = Controls(path)
    return DynReferCaptioner(
        model,
        embed,
        controls,
        tags=[f"w{number % (WORDS - 5) + 5}" for number in range(4585)],
        attributes=[Attribute(f"kind:a{number}/b", False) for number in range(117)],
        class_names=[f"class {number}" for number in range(80)],
        # Random tags would all pass or none; none is what costs least to prompt with.
        options=DynReferOptions(tag_threshold=1.0),
    )


def regions(count: int, height: int, width: int) -> list[RegionClip]:
    """Discs of several sizes on one noisy frame."""
    random = np.random.default_rng(0)
    frame = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows, columns = np.ogrid[:height, :width]
    clips = []
    for _ in range(count):
        y, x = random.uniform((0, 0), (height, width))
        radius = random.uniform(height / 20, height / 4)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        clips.append(RegionClip(frames=[frame], masks=[disc]))
    return clips


def best(
    work: Sequence[Callable[[], T]], repeats: int, device: str
) -> tuple[list[float], list[T]]:
    """Returns the best seconds of each piece of work, done in turns, and results."""

    def now() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    times = [float("inf")] * len(work)
    results = [function() for function in work]
    for _ in range(repeats):
        for number, function in enumerate(work):
            start = now()
            results[number] = function()
            times[number] = min(times[number], now() - start)
    return times, results


@torch.inference_mode()
def measure(config: DynReferConfig, device: str, count: int, repeats: int) -> None:
    """Prints the table of a device."""
    captioner, clips = build(config, device), regions(count, 720, 1280)
    model = captioner.model
    at_once = captioner.options.regions_at_once
    gray = to_gray(clips[0].frames[0])
    views = [nested_views(c.frames[0], c.masks[0], gray=gray) for c in clips]

    def encode(size: int) -> torch.Tensor:
        return torch.cat(
            [
                model.region_tokens(*stack_views(views[first : first + size]))
                for first in range(0, count, size)
            ]
        )

    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"\n{device}, {parameters / 1e6:.0f} M parameters, {count} regions")
    print(f"{'':28}{'together':>10}{'one by one':>12}{'ratio':>8}")
    times, _ = best([lambda: encode(at_once), lambda: encode(1)], repeats, device)
    print(_row("views to tokens", times))
    times, texts = best(
        [
            lambda: [c.text for c in captioner.caption(clips)],
            lambda: [captioner.caption([clip])[0].text for clip in clips],
        ],
        repeats,
        device,
    )
    print(_row("clips to captions and scores", times))
    same = sum(a == b for a, b in zip(*texts, strict=True))
    print(f"{same} of {count} captions are the same")


def _row(name: str, times: Sequence[float]) -> str:
    together, apart = times
    return f"{name:28}{together:9.2f}s{apart:11.2f}s{apart / together:7.1f}x"


def main() -> None:
    """Measures on every device asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--regions", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], action="append")
    options = parser.parse_args()
    for device in options.device or ["cpu", "cuda"]:
        if device == "cuda" and not torch.cuda.is_available():
            print("\ncuda: skipped, this machine has no CUDA device")
            continue
        config = published() if options.published else small()
        measure(config, device, options.regions, options.repeats)


if __name__ == "__main__":
    main()
