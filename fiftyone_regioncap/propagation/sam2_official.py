"""Facebook's own ``sam2`` package: its masks; our frames, ids and memory rules.

The package keeps the whole video and every output. Here frames are given one by one,
the state stays on the CPU, and outputs that its memory cannot look at any more are
dropped while it runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fiftyone_regioncap.core.errors import BackendError, PromptError, WeightsError
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask, Prompt
from fiftyone_regioncap.models.devices import choose_device
from fiftyone_regioncap.models.planning import Footprint
from fiftyone_regioncap.propagation.base import (
    Checkpoint,
    Frames,
    PropagationRequest,
    PropagatorInfo,
)
from fiftyone_regioncap.propagation.prompts import merge_prompts
from fiftyone_regioncap.propagation.sam2 import sizes
from fiftyone_regioncap.propagation.sam2.configuration import (
    SAM2_OFFICIAL,
    Sam2OfficialOptions,
    Sam2Options,
)
from fiftyone_regioncap.propagation.sam2.frames import normalize, shrink
from fiftyone_regioncap.propagation.sam2.masks import masks_of
from fiftyone_regioncap.propagation.stream import Pass, plan_passes
from fiftyone_regioncap.system.assets import sha256

CONFIGS = {
    f"{family}_hiera_{size}": f"configs/{family}/{family}_hiera_{letter}.yaml"
    for family in ("sam2.1", "sam2")
    for size, letter in zip(
        ("tiny", "small", "base_plus", "large"), ("t", "s", "b+", "l"), strict=True
    )
}
"""The package's configuration for each of its published checkpoint files."""


def footprint(
    weights: str | None, options: Sam2OfficialOptions, dtype: torch.dtype
) -> Footprint:
    """Returns what the package's predictor needs: SAM 2's sizes, an object at a time.

    Args:
        weights: Checkpoint file; the tiny one for a name that is not known.
        options: The package's configuration, where the file's name doesn't say it.
        dtype: Not looked at: it computes in bfloat16 by autocast.
    """
    names = {config: name for name, config in CONFIGS.items()}
    name = names.get(options.config or "", Path(weights or "").stem)
    one = Sam2Options(object_chunk=1)
    made = sizes.footprint(name.replace("_", "-"), one, torch.bfloat16)
    return replace(made, assumptions=("Objects are tracked one after another.",))


class _Images:
    """Stands for the predictor's tensor of all frames, and reads them one by one."""

    def __init__(self, frames: Frames, image_size: int) -> None:
        self._frames = frames
        self._image_size = image_size

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Tensor:
        small = shrink(self._frames[index], self._image_size)
        return normalize(small, torch.device("cpu"))[0]


class Sam2OfficialPropagator:
    """Carries prompts with the package's video predictor; see :class:`Propagator`.

    Scores are the sigmoid of its occlusion head. A checkpoint holds the position only:
    going on from one runs the frames before it again, without giving them out.
    """

    def __init__(
        self,
        predictor: Any,
        info: PropagatorInfo,
        options: Sam2OfficialOptions | None = None,
    ) -> None:
        """Takes a built ``SAM2VideoPredictor``; :meth:`from_pretrained` builds one."""
        self._predictor = predictor
        self._info = info
        self.options = options or Sam2OfficialOptions()

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        device: str | None = None,
        options: Sam2OfficialOptions | None = None,
    ) -> Sam2OfficialPropagator:
        """Loads one of the package's checkpoint files (``sam2.1_hiera_tiny.pt``).

        Args:
            path: Path of the checkpoint file.
            device: Torch device to run on; None for CUDA where there is one, else the
                CPU.
            options: Options, such as the package's configuration; None for the
                defaults.

        Raises:
            BackendError: When the package is not installed.
            WeightsError: When the file is absent, or not known and without a config.
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
        config = (options or Sam2OfficialOptions()).config or CONFIGS.get(file.stem)
        if config is None:
            raise WeightsError(
                f"{file.name} is none of {', '.join(sorted(CONFIGS))}; name its config"
            )
        place = choose_device(device)
        predictor = build_sam2_video_predictor(config, str(file), device=str(place))
        card = SAM2_OFFICIAL
        info = PropagatorInfo(card.name, file.stem, sha256(file), card.license)
        return cls(predictor, info, options)

    @property
    def info(self) -> PropagatorInfo:
        """Returns the name, weights and license."""
        return self._info

    def propagate(self, request: PropagationRequest) -> _OfficialRun:
        """Starts or resumes a run; see :meth:`Propagator.propagate`."""
        for by_frame in merge_prompts(request.prompts).values():
            for prompt in by_frame.values():
                if prompt.negative_only:
                    raise PromptError(
                        f"{prompt.name}: sam2-official cannot correct a mask by points "
                        "off the object alone; add one on it, or use the backend sam2"
                    )
        checkpoint = request.checkpoint
        done = 0 if checkpoint is None else int(checkpoint["done"])
        return _OfficialRun(self._run(request), done)

    def _run(self, request: PropagationRequest) -> Iterator[FrameMasks]:
        predictor, frames = self._predictor, request.frames
        prompts = merge_prompts(request.prompts)
        state = self._state(frames)
        # Its memories are bfloat16 on any device, so it needs autocast on any.
        with (
            torch.inference_mode(),
            torch.autocast(predictor.device.type, dtype=torch.bfloat16),
        ):
            for object_id, by_frame in prompts.items():
                for prompt in by_frame.values():
                    _add(predictor, state, object_id, prompt)
            for current in plan_passes(request):
                for frame, ids, logits in _outputs_of(predictor, state, current):
                    emitted = current.emitted(frame)
                    keep = [i for i, key in enumerate(ids) if key in emitted]
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
                    _forget(predictor, state, frame, current.frames.step)
                    yield FrameMasks(
                        frame,
                        dict(zip(chosen, map(ObjectMask, masks, scores), strict=True)),
                        frozenset(key for key in chosen if frame in prompts[key]),
                    )

    def _state(self, frames: Frames) -> dict[str, Any]:
        """Returns the predictor's state as ``init_state`` does, with lazy frames."""
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


def _add(predictor: Any, state: dict[str, Any], object_id: int, prompt: Prompt) -> None:
    frame = prompt.frame
    if prompt.mask is not None:
        predictor.add_new_mask(state, frame, object_id, prompt.mask)
    if prompt.points is None and prompt.box is None:
        return
    predictor.add_new_points_or_box(
        state,
        frame,
        object_id,
        points=prompt.points,
        labels=None if prompt.points is None else prompt.signs.astype(np.int32),
        box=prompt.box,
    )


def _outputs_of(
    predictor: Any, state: dict[str, Any], current: Pass
) -> Iterator[tuple[int, list[int], Tensor]]:
    """Runs the predictor over a pass: frame, object ids, logits (B, 1, h, w)."""
    frames = current.frames
    begin, reverse = frames[0], frames.step == -1
    if reverse:
        # The predictor runs nothing backward from frame 0.
        begin = min(max(max(current.entries.values()), 1), begin)
    yield from predictor.propagate_in_video(
        state,
        start_frame_idx=begin,
        max_frame_num_to_track=abs(frames[-1] - begin),
        reverse=reverse and begin > 0,
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
