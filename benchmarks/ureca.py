"""Compares URECA on the regions of one image together and one by one.

Random weights: the published ones cannot be had, and time does not depend on them.
Together, tiles and the prompt's beginning (system message and image) are read once and
captions are written in one batch; one by one, every region comes with an image of its
own, so that nothing is shared. The ids must be the same.

    python -m benchmarks.ureca                          # a small model on the CPU
    python -m benchmarks.ureca --device cuda --size 1b  # the published shapes: 1b to 8b
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.dynrefer import regions
from fiftyone_regioncap.captioning.ureca.captioner import UrecaCaptioner
from fiftyone_regioncap.captioning.ureca.configuration import UrecaOptions
from fiftyone_regioncap.core.types import Caption, RegionClip
from tests.support.ureca import SIZES, config_of, random_captioner


def apart(captioner: UrecaCaptioner, clips: list[RegionClip]) -> list[Caption]:
    """Captions one by one, each of an image of its own."""
    own = [replace(clip, frames=[clip.frames[0].copy()]) for clip in clips]
    return [captioner.caption([clip])[0] for clip in own]


def timed(work: Callable[[], list[Caption]]) -> tuple[float, list[Caption]]:
    """Returns the seconds of a call, and its result."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def measure(options: argparse.Namespace) -> None:
    """Prints the table."""
    device = options.device
    captioner = random_captioner(
        config_of(SIZES[options.size]),
        options=UrecaOptions(
            max_new_tokens=options.tokens, regions_at_once=options.regions
        ),
        device=device,
        dtype=getattr(torch, options.dtype),
    )
    parameters = sum(weight.numel() for weight in captioner.model.parameters())
    print(
        f"{options.size} ({parameters / 1e6:.0f} M parameters) on {device}, "
        f"{options.dtype}, {options.regions} regions of {options.width}x"
        f"{options.height}, {options.tokens} tokens each"
    )
    ways: dict[str, Callable[[list[RegionClip]], list[Caption]]] = {
        "together": captioner.caption,
        "one by one": lambda clips: apart(captioner, clips),
    }
    best = dict.fromkeys(ways, float("inf"))
    texts: dict[str, list[str]] = {}
    for warm in range(options.repeats + 1):
        for name, way in ways.items():
            clips = regions(options.regions, options.height, options.width)
            seconds, captions = timed(lambda: way(clips))  # noqa: B023 (called here)
            texts[name] = [caption.text for caption in captions]
            if warm or not options.repeats:
                best[name] = min(best[name], seconds)
    for name, seconds in best.items():
        print(f"{name:12}{seconds:9.2f} s{seconds / options.regions:9.3f} s a region")
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    different = len(set(texts["together"]))
    print(f"ratio {best['one by one'] / best['together']:.1f}x", end="; ")
    print(f"{same} of {options.regions} captions are equal, {different} different ones")


def main() -> None:
    """Reads what to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--regions", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--repeats", type=int, default=2)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
