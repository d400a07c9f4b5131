"""The streaming loop gives what transformers' own session gives, object by object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.sam2.configuration import Sam2Options
from fiftyone_regioncap.propagation.sam2.propagator import (
    EdgeTamPropagator,
    Sam2Propagator,
    Sam3TrackerPropagator,
)

TOLERANCE = 1e-4
PROPAGATORS = {
    "sam2": Sam2Propagator,
    "edgetam": EdgeTamPropagator,
    "sam3-tracker": Sam3TrackerPropagator,
}


def box(object_id: int, frame: int = 0) -> Prompt:
    return Prompt(object_id, frame, box=(10 + 3 * object_id, 10, 80, 50 + object_id))


def click(object_id: int, frame: int = 0) -> Prompt:
    return Prompt(object_id, frame, points=np.array([[30.0 + object_id, 40.0]]))


def clicks(object_id: int, frame: int = 0) -> Prompt:
    return Prompt(
        object_id,
        frame,
        points=np.array([[30.0 + object_id, 40.0], [70.0, 60.0], [90.0, 20.5]]),
        point_signs=np.array([True, False, True]),
    )


def boxed_clicks(object_id: int, frame: int = 0) -> Prompt:
    return Prompt(
        object_id,
        frame,
        box=(5.0, 8.0, 100.0, 70.0),
        points=np.array([[40.0, 30.0]]),
        point_signs=np.array([True]),
    )


def mask(object_id: int, frame: int = 0) -> Prompt:
    pixels = np.zeros((90, 140), dtype=bool)
    pixels[20 + object_id : 55, 30:85] = True
    return Prompt(object_id, frame, mask=pixels)


CASES = {
    "one box": ([box(1)], "forward"),
    "one click": ([click(1)], "forward"),
    "several clicks": ([clicks(1)], "forward"),
    "box and click": ([boxed_clicks(1)], "forward"),
    "one mask": ([mask(1)], "forward"),
    "five boxes": ([box(i) for i in range(5)], "forward"),
    "five of all kinds": (
        [box(1), click(2), mask(3), clicks(4), boxed_clicks(9)],
        "forward",
    ),
    "two prompts on different frames": ([box(1), mask(1, 13)], "forward"),
    "neighboring prompts": ([box(1, t) for t in (2, 3, 4, 6)], "forward"),
    "object added at frame 10": ([box(1), click(2, 10)], "forward"),
    "backward": ([mask(1, 25), click(2, 20)], "backward"),
    "backward with two prompts": ([box(1, 6), mask(1, 22)], "backward"),
    "both": ([box(1, 12), click(2, 12)], "both"),
    "both with later prompts": ([box(1, 9), mask(1, 11), click(2, 15)], "both"),
    "both from the first frame": ([box(1, 0)], "both"),
    "prompt on the last frame": ([box(1, 25)], "forward"),
}


RELATIVES = (
    "five of all kinds",
    "two prompts on different frames",
    "object added at frame 10",
    "backward",
    "both with later prompts",
)
"""Cases that reach all that EdgeTAM and SAM 3's tracker do in another way than SAM 2;
the loop over frames, which all cases are about, is the same one."""


def _quick(condition: bool, *values: str) -> Any:
    """Returns a case, which only the whole suite has where the condition fails."""
    return pytest.param(*values, marks=() if condition else pytest.mark.slow)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        _quick(kind == "sam2" or case in RELATIVES, case, kind)
        for kind in PROPAGATORS
        for case in CASES
    ],
)
def test_equals_session(case, kind, make_model, make_clip, reference):
    prompts, direction = CASES[case]
    model, clip = make_model(kind), make_clip(26)
    propagator = PROPAGATORS[kind](model, device="cpu")
    assert_same(propagator, model, clip, prompts, direction, reference)


CONFIGS = {
    "few memories": {"num_maskmem": 3},
    "few pointers": {"max_object_pointers_in_encoder": 4},
    "no time on pointers": {"enable_temporal_pos_encoding_for_object_pointers": False},
    "no occlusion embedding": {"enable_occlusion_spatial_embedding": False},
    "one mask while tracking": {"multimask_output_for_tracking": False},
    "many masks for many points": {"multimask_max_pt_num": 3},
    "two conditioning frames": {"max_cond_frame_num": 2},
    "three conditioning frames": {"max_cond_frame_num": 3},
    "other size": {"size": 192, "hidden": 192},
}
LOOKUPS = ("few memories", "few pointers", "two conditioning frames")


@pytest.mark.parametrize(
    ("config", "direction"),
    [
        # Memories are looked up by direction; the rest does not know it.
        _quick(config in LOOKUPS or direction == "both", config, direction)
        for config in CONFIGS
        for direction in ("forward", "backward", "both")
    ],
)
def test_equals_session_for_other_configurations(
    config, direction, make_model, make_clip, reference
):
    model, clip = make_model("sam2", seed=3, **CONFIGS[config]), make_clip(24)
    prompts = [box(1, t) for t in (4, 5, 6, 11, 19)] + [clicks(2, 8), mask(3, 8)]
    propagator = Sam2Propagator(model, device="cpu")
    assert_same(propagator, model, clip, prompts, direction, reference)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_equals_session_on_short_videos(length, make_model, make_clip, reference):
    model, clip = make_model(), make_clip(length)
    propagator = Sam2Propagator(model, device="cpu")
    assert_same(propagator, model, clip, [box(1), mask(2)], "forward", reference)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_of_objects_change_nothing(chunk, make_model, make_clip, reference):
    model, clip = make_model(), make_clip(8)
    propagator = Sam2Propagator(
        model, device="cpu", options=Sam2Options(object_chunk=chunk)
    )
    prompts = [box(i) for i in range(5)]
    assert_same(propagator, model, clip, prompts, "forward", reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("direction", "size"), [("forward", 512), ("backward", 512), ("forward", 1024)]
)
def test_full_size_equals_session(direction, size, make_clip, reference):
    from transformers import Sam2VideoConfig, Sam2VideoModel

    from fiftyone_regioncap.propagation.sam2.weights import set_image_size

    torch.manual_seed(0)
    config = Sam2VideoConfig()
    set_image_size(config, size)
    model = Sam2VideoModel(config).eval()
    # Untrained, it takes every object for absent and nothing would be compared.
    torch.nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 1.0)
    clip = make_clip(5)
    frame = 0 if direction == "forward" else 4
    prompts = [box(1, frame), mask(2, frame), click(3, 2)]
    propagator = Sam2Propagator(model, device="cpu")
    assert_same(propagator, model, clip, prompts, direction, reference)


def assert_same(propagator, model, clip, prompts, direction, reference):
    expected = reference(model, clip, prompts, direction)
    order, seen = [], {}
    for found in propagator.logits(
        PropagationRequest(clip, prompts, direction=direction)
    ):
        order.append(found.frame)
        for index, object_id in enumerate(found.object_ids):
            assert (found.frame, object_id) not in seen
            seen[found.frame, object_id] = found.logits[index], found.presence[index]
    assert seen.keys() == expected.keys()
    for key, (logits, presence) in expected.items():
        assert (seen[key][0] - logits).abs().max() <= TOLERANCE, key
        assert abs(float(seen[key][1]) - presence) <= TOLERANCE, key
