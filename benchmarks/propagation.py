"""Compares streaming propagation with transformers' own session, in one table.

Speed: both take turns, ten frames each, over the same video with the same weights and
prompts, and the median turn counts. Memory: each run has a process of its own. On the
CPU the model is small and random; where there is CUDA, it is a full-size random SAM 2.1
hiera-tiny at 1024 pixels in bfloat16.

    python -m benchmarks.propagation
    python -m benchmarks.propagation --frames 300 3000 --objects 1 8 16
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from fiftyone_regioncap.core.types import Frame, Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.sam2.frames import normalize, shrink
from fiftyone_regioncap.propagation.sam2.propagator import Sam2Propagator
from fiftyone_regioncap.propagation.sam2.sizes import HieraSize, published
from tests.support.sam2 import MODELS

TURN = 10
"""Frames that one side runs before the other has its turn."""


class Video:
    """A long video of drifting noise that takes no memory."""

    def __init__(self, length: int, height: int = 360, width: int = 640) -> None:
        self.length, self.height, self.width = length, height, width
        random = np.random.default_rng(0)
        self._strip = random.integers(0, 256, (height, 2 * width, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Frame:
        left = index * 3 % self.width
        return np.ascontiguousarray(self._strip[:, left : left + self.width])


class Prepared:
    """Frames as the session wants them: prepared when asked for, and then kept.

    Preparing all of them first, as its processor does, would leave that work out of the
    time a frame; keeping them is what it does.
    """

    def __init__(self, video: Video, image_size: int) -> None:
        self._video, self._image_size = video, image_size
        self._kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._video)

    def __getitem__(self, index: int) -> torch.Tensor:
        if index not in self._kept:
            small = shrink(self._video[index], self._image_size)
            self._kept[index] = normalize(small, torch.device("cpu"))[0]
        return self._kept[index]


def small_model() -> Any:
    """Returns a random model of 1.7 million parameters at 128 pixels."""
    return MODELS["sam2"](
        mask_decoder_config={
            "hidden_size": 128,
            "mlp_dim": 128,
            "num_attention_heads": 4,
        },
        memory_attention_feed_forward_hidden_size=256,
        memory_fuser_intermediate_dim=128,
    )


def build_model(device: str, size: HieraSize | None = None) -> Any:
    """Makes a random model in which every object counts as visible.

    Args:
        device: Device to make it on.
        size: A published size; None for a small model.
    """
    torch.manual_seed(0)
    model = small_model() if size is None else Sam2VideoModel(published(size))
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 5.0)
    return model.eval().to(device)


def model_of_table(device: str) -> Any:
    """Makes the model of the table for a device: full-size where there is CUDA."""
    return build_model(device, "tiny" if device == "cuda" else None)


def boxes(count: int) -> list[Prompt]:
    """Makes one box an object, on the first frame."""
    return [
        Prompt(i, 0, box=(20.0 + 30 * (i % 16), 40, 120.0 + 30 * (i % 16), 200))
        for i in range(count)
    ]


def run_ours(model: Any, video: Video, objects: int, device: str) -> Iterator[object]:
    """Yields the masks of our propagator, frame by frame."""
    propagator = Sam2Propagator(model, device=device)
    request = PropagationRequest(video, boxes(objects), overlap=True)
    return iter(propagator.propagate(request))


def run_session(
    model: Any, video: Video, objects: int, device: str
) -> Iterator[object]:
    """Yields the session's masks, resized to the video as its processor does."""
    size = model.image_size
    session = Sam2VideoInferenceSession(
        video_height=video.height,
        video_width=video.width,
        inference_device=device,
        inference_state_device=device,
        video_storage_device=device,
        dtype=torch.float32,
    )
    session.processed_frames = Prepared(video, size)
    scale = torch.tensor([size / video.width, size / video.height])
    for prompt in boxes(objects):
        index = session.obj_id_to_idx(prompt.object_id)
        corners = torch.tensor(prompt.box).view(1, 1, 2, 2) * scale
        labels = torch.tensor([[[2, 3]]], dtype=torch.int32)
        session.add_point_inputs(
            index, 0, {"point_coords": corners, "point_labels": labels}
        )
    session.obj_with_new_inputs = [prompt.object_id for prompt in boxes(objects)]
    small = device == "cuda"
    with torch.autocast(device, dtype=torch.bfloat16, enabled=small):
        outputs = model.propagate_in_video_iterator(session, start_frame_idx=0)
        for output in outputs:
            large = F.interpolate(
                output.pred_masks.float(),
                size=(video.height, video.width),
                mode="bilinear",
                align_corners=False,
            )
            yield (large[:, 0] > 0).cpu().numpy()


RUNS = {"ours": run_ours, "session": run_session}


def speed(model: Any, objects: int, frames: int, device: str) -> dict[str, float]:
    """Seconds a frame of both, in turns."""
    video = Video(frames)
    running = {name: run(model, video, objects, device) for name, run in RUNS.items()}
    for side in running.values():  # until the memory is full
        list(islice(side, 2 * TURN))
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range((frames - 2 * TURN) // TURN):
        for name, side in running.items():
            start = time.perf_counter()
            list(islice(side, TURN))
            times[name].append((time.perf_counter() - start) / TURN)
    return {name: median(values) for name, values in times.items()}


def peak(name: str, frames: int, objects: int, device: str) -> float:
    """Returns peak memory in MiB: resident on the CPU, allocated on the GPU."""
    for _ in RUNS[name](model_of_table(device), Video(frames), objects, device):
        pass
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_elsewhere(name: str, frames: int, objects: int, device: str) -> float:
    """:func:`peak` in a process of its own."""
    job = json.dumps([name, frames, objects, device])
    command = [sys.executable, __file__, "--job", job]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


def outside_the_model(model: Any, frames: int, device: str) -> float:
    """Returns the part of the time a frame that is not the model, for one object."""
    propagator = Sam2Propagator(model, device=device)
    side = model.image_size
    easy = Video(frames, side, side)  # nothing to resize, and no masks made
    start = time.perf_counter()
    for found in propagator.logits(PropagationRequest(easy, boxes(1))):
        found.presence.cpu()
    alone = time.perf_counter() - start
    start = time.perf_counter()
    request = PropagationRequest(Video(frames, 720, 1280), boxes(1))
    for _ in propagator.propagate(request):
        pass
    return max(1 - alone / (time.perf_counter() - start), 0.0)


def table(objects: Sequence[int], frames: Sequence[int], device: str) -> None:
    """Prints the tables of one device."""
    model = model_of_table(device)
    what = (
        f"{torch.cuda.get_device_name()}, random hiera-tiny, 1024 px, bfloat16"
        if device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads, small random model, 128 px"
    )
    print(f"\n{what}\n\n| objects | session ms/frame | ours ms/frame | faster |")
    print("|---|---|---|---|")
    ours: dict[int, float] = {}
    for count in objects:
        times = speed(model, count, 100, device)
        ours[count] = times["ours"]
        ratio = times["session"] / times["ours"]
        print(
            f"| {count} | {1000 * times['session']:.1f} | {1000 * times['ours']:.1f} "
            f"| {ratio:.2f}x |",
            flush=True,
        )
    if {1, 16} <= ours.keys():
        print(f"\n16 objects take {ours[16] / ours[1]:.1f} times as long as 1")
    share = outside_the_model(model, 100, device)
    print(f"\nnot the model (decode, resize, masks), 1 object: {share:.0%}")
    print("\n| frames | session peak MiB | ours peak MiB |\n|---|---|---|")
    peaks: list[float] = []
    for length in frames:
        sides = {name: peak_elsewhere(name, length, 2, device) for name in RUNS}
        peaks.append(sides["ours"])
        print(
            f"| {length} | {sides['session']:.0f} | {sides['ours']:.0f} |", flush=True
        )
    print(f"\nours, longest against shortest: {peaks[-1] / peaks[0]:.3f}")


def main() -> None:
    """Reads the arguments and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--frames", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.job:
        print(peak(*json.loads(arguments.job)))
        return
    table(arguments.objects, arguments.frames, "cpu")
    if torch.cuda.is_available():
        table(arguments.objects, arguments.frames, "cuda")
    else:
        print("\nCUDA: skipped, this machine has no GPU that torch can use")


if __name__ == "__main__":
    main()
