"""Measures the speed of captioners side by side, in one table.

One command does it all: on a GPU the published DAM-3B's shapes with random weights in
bfloat16, 64 clips of 8 frames, 100 new tokens each; elsewhere a tiny model.

    python -m benchmarks.captioning
    python -m benchmarks.captioning --also patchioner=WEIGHTS --also measured

What is compared: one clip at a time through plain ``transformers.generate`` (what the
authors' code does) against ours, with the same weights, inputs and number of tokens.
Prefill is everything before the second token, vision included; decode the rest.
``of limit`` is, for prefill, the arithmetic done over the measured matrix speed; for
decode, the bytes of weights and cache that each step must read over the measured copy
speed.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from fiftyone_regioncap.captioning.base import Captioner
from fiftyone_regioncap.captioning.dam.captioner import DamVideoCaptioner
from fiftyone_regioncap.captioning.dam.configuration import DamOptions
from fiftyone_regioncap.captioning.dam.generation import Request
from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.captioning.dam.prompts import VIDEO_PROMPTS, query
from fiftyone_regioncap.captioning.dam.tokenizer import DamTokenizer
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.captioning.streaming import caption_stream
from fiftyone_regioncap.core.types import RegionClip
from fiftyone_regioncap.models.registry import ModelSpec
from tests.support.dam import DAM_3B, TINY, random_dam, run, train_tokenizer

FRAMES = 8
QUESTION = query(VIDEO_PROMPTS["detailed"], FRAMES, joint=True)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: Name of the method.
        clips: Number of clips.
        seconds: Seconds for all clips.
        prefill: Seconds before the second token; None where it isn't measured apart.
        tokens: Number of tokens in all; None for captioners that make none.
        prefill_limit: Fraction of the matrix speed, in [0, 1]; None without a GPU.
        decode_limit: Fraction of the copy speed, in [0, 1]; None without a GPU.
        equal: Whether ids are those of the first row; None where there are none.
    """

    name: str
    clips: int
    seconds: float
    prefill: float | None = None
    tokens: int | None = None
    prefill_limit: float | None = None
    decode_limit: float | None = None
    equal: bool | None = None


@dataclass(frozen=True)
class Machine:
    """Measured peak rates of the device.

    Attributes:
        copied: Bytes per second, read and written together.
        multiplied: Floating point operations per second in matrix products.
    """

    copied: float
    multiplied: float


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Measures the seconds of a call, the device's work included."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Copies and multiplies something big."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    copying = min(seconds(lambda: target.copy_(source), device) for _ in range(5))
    size = 8192
    factor = torch.randn(size, size, dtype=dtype, device=device)
    factor @ factor
    product = min(seconds(lambda: factor @ factor, device) for _ in range(5))
    return Machine(2 * source.numel() / copying, 2 * size**3 / product)


def make_views(dam: DAM, count: int) -> list[Tensor]:
    """Clips of random frames with an object that moves, as the model's input."""
    rng = np.random.default_rng(0)
    views = []
    for number in range(count):
        made = []
        for step in range(FRAMES):
            frame = rng.integers(0, 255, (270, 480, 3), dtype=np.uint8)
            mask = np.zeros((270, 480), dtype=bool)
            mask[60 : 120 + number % 60, 40 + 20 * step : 140 + 20 * step] = True
            made.append(dam.processor.views(frame, mask)[0])
        views.append(torch.from_numpy(np.stack(made)))
    return views


def one_at_a_time(dam: DAM, views: Sequence[Tensor], tokens: int) -> list[list[int]]:
    """Generates clip by clip with transformers' own loop, as the authors' code does."""
    answers = []
    for clip in views:
        prompt = dam.embed(dam.prompt_ids(QUESTION), dam.encode(clip))
        with torch.inference_mode():
            ids = dam.llm.generate(
                inputs_embeds=prompt[None],
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                eos_token_id=dam.tokenizer.eos,
                pad_token_id=0,
            )
        answers.append(ids[0].tolist())
    return answers


def batched(
    dam: DAM, views: Sequence[Tensor], tokens: int, rows: int
) -> list[list[int]]:
    """Generates with our engine, which encodes and decodes clips together."""
    requests = []
    for start in range(0, len(views), 8):
        some = views[start : start + 8]
        encoded = dam.encode(torch.cat(list(some))).split(FRAMES)
        for number, images in enumerate(encoded, start=start):
            prompt = dam.embed(dam.prompt_ids(QUESTION), images)
            requests.append(Request(number, prompt, tokens, ignore_stop=True))
    answers: list[list[int]] = [[] for _ in views]
    for event in run(dam, requests, rows):
        if event.answer is not None and isinstance(event.key, int):
            answers[event.key] = event.answer.ids
    return answers


def prefill_operations(dam: DAM) -> float:
    """Counts floating point operations before the second token of one clip."""
    vision, config = dam.config.vision, dam.config
    tokens = config.grid**2
    attention = 4 * tokens**2 * vision.hidden_size
    layer = (
        2
        * tokens
        * (
            4 * vision.hidden_size**2
            + 2 * vision.hidden_size * vision.intermediate_size
        )
    )
    # Full view and crop through the tower, the crop through the adapters too.
    image = 3 * config.used_layers * (layer + attention)
    llm = config.llm
    length = len(dam.prompt_ids(QUESTION)) + FRAMES * (config.tokens_per_image - 1)
    weights = sum(p.numel() for p in dam.llm.model.layers.parameters())
    attended = 2 * length**2 * llm.num_attention_heads * llm.head_dim
    return FRAMES * image + 2 * length * weights + llm.num_hidden_layers * attended


def decode_bytes(dam: DAM, rows: int, tokens: int) -> float:
    """Bytes that one decode step must read: weights, and the cache half way through."""
    size = dam.dtype.itemsize
    llm = dam.config.llm
    weights = sum(p.numel() for p in dam.llm.model.layers.parameters())
    weights += dam.llm.lm_head.weight.numel()
    length = len(dam.prompt_ids(QUESTION)) + FRAMES * (dam.config.tokens_per_image - 1)
    cache = 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim
    return size * (weights + rows * cache * (length + tokens / 2))


def measure_dam(
    name: str,
    dam: DAM,
    views: Sequence[Tensor],
    tokens: int,
    rows: int,
    answer: Callable[[int], list[list[int]]],
    reference: list[list[int]] | None,
    machine: Machine | None,
) -> tuple[Row, list[list[int]]]:
    """Measures one method of generation, prefill and decode apart."""
    answer(2)  # kernels, graphs and allocations of the first time
    if dam.device.type == "cuda":
        answer(tokens)
    prefill = seconds(lambda: answer(1), dam.device)
    ids: list[list[int]] = []
    total = seconds(lambda: ids.extend(answer(tokens)), dam.device)
    limits: dict[str, float] = {}
    if machine:
        done = len(views) * prefill_operations(dam)
        limits["prefill_limit"] = done / prefill / machine.multiplied
        steps = (tokens - 1) * len(views) / rows
        read = steps * decode_bytes(dam, rows, tokens)
        limits["decode_limit"] = read / (total - prefill) / machine.copied
    equal = None if reference is None else ids[: len(reference)] == reference
    made = len(views) * tokens
    return Row(name, len(views), total, prefill, made, equal=equal, **limits), ids


def measure_captioner(name: str, captioner: Captioner, clips: int) -> Row:
    """Measures any captioner, from clips to captions."""
    rng = np.random.default_rng(0)
    frames = [
        rng.integers(0, 255, (270, 480, 3), dtype=np.uint8) for _ in range(FRAMES)
    ]
    mask = np.zeros((270, 480), dtype=bool)
    mask[60:150, 100:260] = True
    one = RegionClip(frames, [mask] * FRAMES, tuple(range(FRAMES)), fps=25.0)
    list(caption_stream(captioner, [one]))
    begun = time.perf_counter()
    made = list(caption_stream(captioner, [one] * clips))
    took = time.perf_counter() - begun
    tokens = sum(caption.tokens for caption in made)
    return Row(name, clips, took, tokens=tokens or None)


def show(rows: Sequence[Row]) -> str:
    """Returns the table, against its first row."""

    def cell(value: float | None, form: str = "{:.2f}") -> str:
        return "-" if value is None else form.format(value)

    head = (
        "| way | clips | clips/s | x first | prefill s/clip | decode tokens/s "
        "| prefill of limit | decode of limit | ids equal |"
    )
    lines = [head, "|" + "---|" * 9]
    base = rows[0].clips / rows[0].seconds
    for row in rows:
        rate = row.clips / row.seconds
        decoded = None
        if row.prefill is not None and row.tokens is not None:
            decoded = (row.tokens - row.clips) / max(row.seconds - row.prefill, 1e-9)
        cells = [
            row.name,
            str(row.clips),
            cell(rate),
            cell(rate / base),
            cell(None if row.prefill is None else row.prefill / row.clips, "{:.4f}"),
            cell(decoded, "{:.0f}"),
            cell(row.prefill_limit, "{:.0%}"),
            cell(row.decode_limit, "{:.0%}"),
            "-" if row.equal is None else ("yes" if row.equal else "NO"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def flat_memory(dam: DAM, tracks: int) -> str:
    """Measures host memory while very many clips wait."""
    captioner = DamVideoCaptioner(dam, DamOptions(max_new_tokens=1))
    process, levels = psutil.Process(), []
    frames = [np.zeros((120, 160, 3), dtype=np.uint8)] * FRAMES
    mask = np.zeros((120, 160), dtype=bool)
    mask[30:90, 40:120] = True
    clips = (RegionClip(frames, [mask] * FRAMES) for _ in range(tracks))
    for number, _ in enumerate(captioner.caption_stream(clips), start=1):
        if number % max(tracks // 4, 1) == 0:
            levels.append(process.memory_info().rss / (1 << 20))
    shown = ", ".join(f"{level:.0f}" for level in levels)
    return (
        f"host memory while {tracks} tracks go through (MiB at each quarter): {shown}"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--clips", type=int, default=64 if cuda else 12)
    parser.add_argument("--tokens", type=int, default=100 if cuda else 24)
    parser.add_argument("--baseline-clips", type=int, default=4)
    parser.add_argument(
        "--tracks", type=int, default=0, help="check memory with so many"
    )
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME[=WEIGHTS]",
        help="another captioner, from clips to captions",
    )
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    config = DAM_3B if on_gpu else TINY
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(Path(folder), 320)
        dam = random_dam(config, DamTokenizer(Path(folder)), device, dtype)
    title = torch.cuda.get_device_name(device) if on_gpu else platform.processor()
    shapes = "DAM-3B's shapes, bfloat16" if on_gpu else "tiny shapes, float32"
    print(f"{title or 'CPU'}, {shapes}, {FRAMES} frames, {options.tokens} new tokens\n")
    machine = None
    if on_gpu:
        machine = measure_machine(device, dtype)
        print(
            f"measured: copy {machine.copied / 1e12:.2f} TB/s, "
            f"matrix {machine.multiplied / 1e12:.0f} TFLOP/s\n"
        )
    else:
        print(
            "limits left out: they are about GPUs, and there is no CUDA device here\n"
        )
    views = make_views(dam, options.clips)
    few = views[: options.baseline_clips]
    row, reference = measure_dam(
        "one at a time, transformers.generate",
        dam,
        few,
        options.tokens,
        1,
        lambda tokens: one_at_a_time(dam, few, tokens),
        None,
        machine,
    )
    table = [row]
    for name, some, rows in (
        ("ours, one at a time", few, 1),
        (f"ours, {len(views)} waiting", views, len(views)),
    ):
        row, _ = measure_dam(
            name,
            dam,
            some,
            options.tokens,
            rows,
            lambda tokens, some=some, rows=rows: batched(dam, some, tokens, rows),
            reference,
            machine,
        )
        table.append(row)
    for also in options.also:
        name, _, weights = also.partition("=")
        load = ModelSpec(name, weights or None, options.device)
        table.append(measure_captioner(name, CAPTIONERS.load(load)[0], len(views)))
    print(show(table))
    if options.tracks:
        print("\n" + flat_memory(dam, options.tracks))


if __name__ == "__main__":
    main()
