from __future__ import annotations

import numpy as np

from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest
from fiftyone_regioncap.propagation.sam2.propagator import Sam2Propagator


def test_points_on_a_frame_give_what_a_prompt_gives(make_model, make_clip):
    propagator, clip = Sam2Propagator(make_model(), device="cpu"), make_clip(1)
    points = np.array([[30.0, 40.0], [100.0, 20.0], [70.0, 70.0]])
    prompts = [Prompt(i, 0, points=points[i : i + 1]) for i in range(3)]
    expected = next(propagator.logits(PropagationRequest(clip, prompts)))
    segmenter = propagator.segmenter()
    logits, ious = segmenter.decode(segmenter.encode(clip[0]), points)
    assert np.abs(logits - expected.logits.numpy()).max() < 1e-4
    assert np.abs(ious - expected.iou.numpy()).max() < 1e-4
