"""Facebook's own ``sam2`` package: its masks; our frames, ids and memory rules.

The package keeps the whole video and every output. Here frames are given one by one,
the state stays on the CPU, and outputs that its memory cannot look at any more are
dropped while it runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.errors import BackendError, WeightsError
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.propagation.base import (
    Checkpoint,
    Frames,
    PropagationRequest,
    PropagatorInfo,
)
from fiftyone_regioncap.propagation.sam2.frames import normalize, shrink
from fiftyone_regioncap.propagation.sam2.masks import masks_of
from fiftyone_regioncap.propagation.sam2.prompts import FramePrompt, merge_prompts
from fiftyone_regioncap.system.assets import sha256

CONFIGS = {
    "sam2.1_hiera_tiny": "configs/sam2.1/sam2.1_hiera_t.yaml",
    "sam2.1_hiera_small": "configs/sam2.1/sam2.1_hiera_s.yaml",
    "sam2.1_hiera_base_plus": "configs/sam2.1/sam2.1_hiera_b+.yaml",
    "sam2.1_hiera_large": "configs/sam2.1/sam2.1_hiera_l.yaml",
    "sam2_hiera_tiny": "configs/sam2/sam2_hiera_t.yaml",
    "sam2_hiera_small": "configs/sam2/sam2_hiera_s.yaml",
    "sam2_hiera_base_plus": "configs/sam2/sam2_hiera_b+.yaml",
    "sam2_hiera_large": "configs/sam2/sam2_hiera_l.yaml",
}
"""The package's configuration for each of its published checkpoint files."""


class _Images:
    """What the predictor takes for its tensor of all frames."""

    def __init__(self, frames: Frames, image_size: int) -> None:
        self._frames = frames
        self._image_size = image_size

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Tensor:
        frame = np.array(self._frames[index], order="C")
        pixels = torch.from_numpy(frame).permute(2, 0, 1)
        return normalize(shrink(pixels, self._image_size), torch.device("cpu"))[0]


class Sam2OfficialPropagator:
    """The package's video predictor; see :class:`Propagator`.

    Scores are the sigmoid of its occlusion head. A checkpoint holds the position only:
    going on from one runs the frames before it again, without giving them out.
    """

    def __init__(self, predictor: Any, info: PropagatorInfo) -> None:
        """Takes a built ``SAM2VideoPredictor``; :meth:`from_pretrained` builds one."""
        self._predictor = predictor
        self._info = info

    @classmethod
    def from_pretrained(
        cls, path: str, *, config: str | None = None, device: str | None = None
    ) -> Sam2OfficialPropagator:
        """Loads one of the package's checkpoint files (``sam2.1_hiera_tiny.pt``).

        Args:
            path: the file.
            config: the package's configuration; None finds it by the file's name.
            device: None takes CUDA where there is one, else the CPU.

        Raises:
            BackendError: when the package is not installed.
            WeightsError: when the file is absent, or not known and without a config.
        """
        try:
            from sam2.build_sam import build_sam2_video_predictor
        except ImportError as error:
            raise BackendError(
                "sam2-official needs facebook's package; `pip install sam2`, or use "
                "the backend sam2, which needs nothing more"
            ) from error
        file = Path(path).expanduser()
        if not file.is_file():
            raise WeightsError(f"{file}: no such file; give a checkpoint of sam2 (.pt)")
        config = config or CONFIGS.get(file.stem)
        if config is None:
            raise WeightsError(
                f"{file.name} is none of {', '.join(sorted(CONFIGS))}; name its config"
            )
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        predictor = build_sam2_video_predictor(config, str(file), device=device)
        info = PropagatorInfo("sam2-official", file.stem, sha256(file), "Apache-2.0")
        return cls(predictor, info)

    @property
    def info(self) -> PropagatorInfo:
        """Name, weights and license."""
        return self._info

    def propagate(self, request: PropagationRequest) -> _OfficialRun:
        """Starts or resumes a run; see :meth:`Propagator.propagate`."""
        checkpoint = request.checkpoint
        done = 0 if checkpoint is None else int(checkpoint["done"])
        return _OfficialRun(self._run(request), done)

    def _run(self, request: PropagationRequest) -> Iterator[FrameMasks]:
        predictor, frames = self._predictor, request.frames
        prompts = merge_prompts(request.prompts)
        direction, start, stop = request.direction, request.start, request.end
        state = self._state(frames)
        # Its memories are bfloat16 on any device, so it needs autocast on any.
        with (
            torch.inference_mode(),
            torch.autocast(predictor.device.type, dtype=torch.bfloat16),
        ):
            for object_id, by_frame in prompts.items():
                for frame, prompt in by_frame.items():
                    _add(predictor, state, object_id, frame, prompt)
            first = {key: min(by_frame) for key, by_frame in prompts.items()}
            last = {key: max(by_frame) for key, by_frame in prompts.items()}
            passes: list[tuple[int, int, Callable[[int, int], bool]]] = []
            if direction != "backward":
                passes.append((1, min(first.values()), lambda o, t: first[o] <= t))
            elif max(last.values()) > 0:
                passes.append((-1, max(last.values()), lambda o, t: t <= last[o]))
            else:  # the predictor runs nothing backward from frame 0
                passes.append((1, 0, lambda o, t: t == 0))
            if direction == "both" and max(first.values()) > start:
                # Likewise: of frame 1, only objects that enter on it are on frame 0.
                begin = max(max(first.values()) - 1, 1)
                passes.append((-1, begin, lambda o, t: t < first[o]))
            for step, begin, carries in passes:
                count = stop - 1 - begin if step == 1 else begin - start
                outputs = predictor.propagate_in_video(
                    state,
                    start_frame_idx=begin,
                    max_frame_num_to_track=count,
                    reverse=step == -1,
                )
                for frame, ids, logits in outputs:
                    keep = [i for i, key in enumerate(ids) if carries(key, frame)]
                    if not keep:
                        continue
                    chosen = [ids[i] for i in keep]
                    masks = masks_of(
                        logits[keep, 0].float(),
                        frames.height,
                        frames.width,
                        overlap=request.overlap,
                    )
                    scores = [_score(state, i, frame) for i in keep]
                    _forget(predictor, state, frame, step)
                    yield FrameMasks(
                        frame,
                        {
                            key: ObjectMask(mask, score)
                            for key, mask, score in zip(
                                chosen, masks, scores, strict=True
                            )
                        },
                        frozenset(key for key in chosen if frame in prompts[key]),
                    )

    def _state(self, frames: Frames) -> dict[str, Any]:
        """The predictor's state as ``init_state`` builds it, frames given lazily."""
        predictor = self._predictor
        empty: tuple[str, ...] = (
            "point_inputs_per_obj",
            "mask_inputs_per_obj",
            "cached_features",
            "constants",
            "output_dict_per_obj",
            "temp_output_dict_per_obj",
            "frames_tracked_per_obj",
        )
        return {
            "images": _Images(frames, predictor.image_size),
            "num_frames": len(frames),
            "offload_video_to_cpu": True,
            "offload_state_to_cpu": True,
            "video_height": frames.height,
            "video_width": frames.width,
            "device": predictor.device,
            "storage_device": torch.device("cpu"),
            "obj_id_to_idx": OrderedDict(),
            "obj_idx_to_id": OrderedDict(),
            "obj_ids": [],
            **{name: {} for name in empty},
        }


class _OfficialRun:
    def __init__(self, frames: Iterator[FrameMasks], done: int) -> None:
        self._frames = frames
        self._skip = done
        self._done = 0

    def __iter__(self) -> Iterator[FrameMasks]:
        return self

    def __next__(self) -> FrameMasks:
        while self._done < self._skip:
            next(self._frames)
            self._done += 1
        found = next(self._frames)
        self._done += 1
        self._skip = self._done
        return found

    def checkpoint(self) -> Checkpoint:
        """See :meth:`Propagation.checkpoint`."""
        done: NDArray[np.int64] = np.array(max(self._done, self._skip), dtype=np.int64)
        return {"done": done}


def _add(
    predictor: Any,
    state: dict[str, Any],
    object_id: int,
    frame: int,
    prompt: FramePrompt,
) -> None:
    if prompt.mask is not None:
        predictor.add_new_mask(state, frame, object_id, prompt.mask)
    if prompt.points is None or prompt.labels is None:
        return
    corners = prompt.labels >= 2
    clicks = ~corners
    predictor.add_new_points_or_box(
        state,
        frame,
        object_id,
        points=prompt.points[clicks] if clicks.any() else None,
        labels=prompt.labels[clicks] if clicks.any() else None,
        box=prompt.points[corners].flatten() if corners.any() else None,
    )


def _outputs(state: dict[str, Any], index: int) -> dict[str, dict[int, Any]]:
    return state["output_dict_per_obj"][index]


def _score(state: dict[str, Any], index: int, frame: int) -> float:
    outputs = _outputs(state, index)
    found = outputs["cond_frame_outputs"].get(frame)
    if found is None:
        found = outputs["non_cond_frame_outputs"][frame]
    return float(found["object_score_logits"].float().sigmoid().flatten()[0])


def _forget(predictor: Any, state: dict[str, Any], frame: int, step: int) -> None:
    """Drops what neither memory attention nor object pointers can reach from here."""
    reach = max(predictor.num_maskmem, predictor.max_obj_ptrs_in_encoder)
    for index in state["output_dict_per_obj"]:
        outputs = _outputs(state, index)
        tracked = outputs["non_cond_frame_outputs"]
        first = min(outputs["cond_frame_outputs"], default=frame)
        for other in list(tracked):
            behind = (frame - other) * step
            # The way back from the first prompt looks at the frames after it.
            if behind > reach and abs(other - first) > reach:
                del tracked[other]
        seen = state["frames_tracked_per_obj"].get(index, {})
        for other in [t for t in seen if (frame - t) * step > reach]:
            del seen[other]
