"""Measures Patch-ioner's regions, decoding and memory, in three tables.

    python -m benchmarks.patchioner [--quick] [--regions] [--decoding] [--memory]

Random weights of the published sizes (``--quick``: small ones). Every row is measured
beside its counterpart in the same run; the ratios are what counts, since other work on
the machine moves both.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch

from fiftyone_regioncap.captioning.patchioner.aggregation import MaskRegion
from fiftyone_regioncap.captioning.patchioner.decoder import PrefixDecoder
from fiftyone_regioncap.captioning.patchioner.gpt2 import Gpt2Config
from fiftyone_regioncap.captioning.patchioner.memory import TextMemory
from fiftyone_regioncap.captioning.patchioner.model import embed_regions
from fiftyone_regioncap.captioning.patchioner.vision import DinoTower

END = 49_407
STEPS = 30


def seconds(work: Callable[[], object]) -> float:
    """Measures the seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def side_by_side(
    first: Callable[[], object], second: Callable[[], object], rounds: int
) -> tuple[float, float]:
    """Measures median seconds of two calls, in turns, after a round to warm up."""
    first(), second()
    times = [(seconds(first), seconds(second)) for _ in range(rounds)]
    return statistics.median(t[0] for t in times), statistics.median(
        t[1] for t in times
    )


def tower(quick: bool) -> DinoTower:
    """Returns a tower of the base model's size."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    sizes = (64, 2, 4, 112) if quick else (768, 12, 12, 518)
    hidden, layers, heads, side = sizes
    config = Dinov2WithRegistersConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=side,
        patch_size=14,
    )
    return DinoTower(Dinov2WithRegistersModel(config).eval(), side=side)


def regions(quick: bool) -> None:
    """Compares 100 regions of one frame with one, decoding excluded."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1080, 1920, 3), dtype=np.uint8)
    masks = []
    for _ in range(100):
        mask = np.zeros((1080, 1920), dtype=bool)
        top, left = rng.integers(0, 900), rng.integers(0, 1700)
        height, width = rng.integers(40, 400, 2)
        mask[top : top + height, left : left + width] = True
        masks.append(MaskRegion(mask))
    model = tower(quick)

    def embed(chosen: Sequence[MaskRegion]) -> torch.Tensor:
        (features,) = model.encode([frame])
        return embed_regions(features, chosen)

    one, many = side_by_side(lambda: embed(masks[:1]), lambda: embed(masks), 5)
    print("\n| one 1920x1080 frame | seconds |\n|---|---|")
    print(f"| 1 region | {one:.3f} |\n| 100 regions | {many:.3f} |")
    print(f"| ratio (at most 1.3) | {many / one:.2f} |")


def decoding(quick: bool, rows: int = 256) -> None:
    """Regions by the cache against the reference's way, the same ids."""
    torch.manual_seed(0)
    config = Gpt2Config(64, 2, 4) if quick else Gpt2Config()
    decoder = PrefixDecoder(config.width, config).eval()
    prefix = torch.nn.functional.normalize(torch.randn(rows, config.width), dim=1) * 40
    found: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def reference() -> None:
        model = decoder.decoder
        embeddings = decoder.clip_project(prefix)[:, None]
        chosen = []
        for _ in range(STEPS):
            # The whole text again at every step, and scores of all its places.
            logits = torch.cat(
                [model.logits(model(part))[:, -1] for part in embeddings.split(32)]
            )
            chosen.append(logits.argmax(dim=1))
            step = model.embed(chosen[-1])[:, None]
            embeddings = torch.cat([embeddings, step], dim=1)
        found["reference"] = torch.stack(chosen, dim=1)

    def ours() -> None:
        generated = decoder.generate(prefix, end_id=END)
        found["ours"] = generated.ids

    cached, plain = seconds(ours), seconds(reference)
    same = (found["ours"] == found["reference"][:, : found["ours"].shape[1]]).all()
    print(f"\n| {rows} captions of {STEPS} tokens | seconds |\n|---|---|")
    print(f"| reference's way | {plain:.1f} |\n| ours | {cached:.1f} |")
    print(f"| ratio (at least 5) | {plain / cached:.1f} |\n| same ids | {bool(same)} |")


def caption_like(rows: int, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vectors that lie as captions do: sums of few out of many words, unequal length.

    Words come by Zipf's law, so that many captions are near one another and many are
    alone; lengths are about 10, as Talk2DINO's are.
    """
    width = words.shape[1]
    weights = 1 / np.arange(1, len(words) + 1)
    chosen = rng.choice(len(words), (rows, 6), p=weights / weights.sum())
    parts = rng.random((rows, 6), dtype=np.float32) + 0.5
    vectors = np.zeros((rows, width), dtype=np.float32)
    for word, part in zip(chosen.T, parts.T, strict=True):
        vectors += words[word] * part[:, None]
    vectors += 0.5 * rng.standard_normal((rows, width), dtype=np.float32)
    return vectors * (10 / np.linalg.norm(vectors, axis=1, keepdims=True).mean())


def memory(quick: bool) -> None:
    """A frame of patches against the published memory's size, with and without faiss.

    Patches are made from rows of the memory: ``far`` ones lie as far from every text as
    images do (half of them is noise), ``near`` ones as paraphrases of captions do.
    """
    rows, width, patches = (20_000, 64, 200) if quick else (566_747, 768, 1_369)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "memory.h5")
        with h5py.File(path, "w") as file:
            vectors = file.create_dataset("coco-embeddings", (rows, width), np.float32)
            words = rng.standard_normal((4_000, width), dtype=np.float32)
            for start in range(0, rows, 50_000):
                count = min(50_000, rows - start)
                vectors[start : start + count] = caption_like(count, words, rng)
            picked = np.sort(rng.choice(rows, patches, replace=False))
            near = torch.from_numpy(vectors[picked])
        scale = near.norm(dim=1, keepdim=True) / width**0.5
        noise = torch.randn(near.shape, generator=torch.Generator().manual_seed(0))
        loaded = TextMemory.load(path)
        far = near + noise * scale
        near = (near + 0.3 * noise * scale)[:200]
        exact: dict[str, torch.Tensor] = {}
        before = peak_gigabytes()
        took = seconds(lambda: exact.update(far=loaded.project(far)))
        peak = peak_gigabytes()
        print(f"\n| {patches} patches, {rows} x {width} | |\n|---|---|")
        print(f"| peak RAM before (GB) | {before:.2f} |")
        print(f"| peak RAM, all rows (at most 3 GB) | {peak:.2f} |")
        print(f"| all rows (s) | {took:.2f} |", flush=True)
        exact["near"] = loaded.project(near)
        built = seconds(lambda: loaded.use_index(Path(folder, "memory.faiss")))
        print(f"| building the index once (s) | {built:.0f} |", flush=True)
        found: dict[str, torch.Tensor] = {}
        indexed = seconds(lambda: found.update(far=loaded.project(far)))
        found["near"] = loaded.project(near)
        print(f"| faiss (s) | {indexed:.2f} |")
        print(f"| ratio (at least 10) | {took / indexed:.1f} |")
        for name in exact:
            cosines = torch.nn.functional.cosine_similarity(exact[name], found[name])
            share = (cosines >= 0.999).float().mean().item()
            print(f"| {name}: cosine >= 0.999 (at least 0.99) | {share:.4f} |")


def peak_gigabytes() -> float:
    """Returns the most RAM that this process has had, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Runs the tables asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    tables: dict[str, Callable[[bool], None]] = {
        "regions": regions,
        "decoding": decoding,
        "memory": memory,
    }
    parser.add_argument("--quick", action="store_true", help="small sizes")
    for name in tables:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--rows", type=int, default=256, help="regions to decode")
    chosen = parser.parse_args()
    tables["decoding"] = partial(decoding, rows=chosen.rows)
    named = [name for name in tables if getattr(chosen, name)]
    for name in named or tables:
        tables[name](chosen.quick)


if __name__ == "__main__":
    main()
