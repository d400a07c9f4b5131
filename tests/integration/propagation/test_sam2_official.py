from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from fiftyone_regioncap.core.errors import BackendError, PromptError, WeightsError
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.propagation.base import PropagationRequest, PropagatorInfo
from fiftyone_regioncap.propagation.sam2_official import Sam2OfficialPropagator


class Clip:
    """Three grey frames."""

    height, width = 90, 140

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return np.full((90, 140, 3), 40 * index, dtype=np.uint8)


def boxes(starts):
    """A box for each object, on its first frame."""
    return [Prompt(key, t, box=(10, 10, 60, 60)) for key, t in starts.items()]


INSTALLED = importlib.util.find_spec("sam2") is not None


@pytest.mark.skipif(INSTALLED, reason="facebook's sam2 package is installed")
def test_without_the_package_the_error_says_what_to_do():
    with pytest.raises(BackendError, match="pip install sam2"):
        Sam2OfficialPropagator.from_pretrained("sam2.1_hiera_tiny.pt")


def off(frame):
    points, signs = np.array([[20.0, 20.0]]), np.array([False])
    return Prompt(7, frame, points=points, point_signs=signs)


def test_corrections_are_refused_but_not_points_off_the_object_beside_a_box():
    info = PropagatorInfo("sam2-official", "none", "", "Apache-2.0")
    propagator = Sam2OfficialPropagator(None, info)
    beside = PropagationRequest(Clip(), [*boxes({7: 0}), off(0)])
    assert propagator.propagate(beside).checkpoint() == {"done": 0}
    with pytest.raises(PromptError, match=r"object 7 on frame 2: .* backend sam2"):
        propagator.propagate(PropagationRequest(Clip(), [*boxes({7: 0}), off(1)]))


@pytest.mark.skipif(not INSTALLED, reason="facebook's sam2 package is not installed")
class TestWithThePackage:
    @pytest.fixture(scope="class")
    def propagator(self):
        from sam2.build_sam import build_sam2_video_predictor

        predictor = build_sam2_video_predictor(
            "configs/sam2.1/sam2.1_hiera_t.yaml", ckpt_path=None, device="cpu"
        )
        info = PropagatorInfo("sam2-official", "random", "", "Apache-2.0")
        return Sam2OfficialPropagator(predictor, info)

    def test_unknown_files(self, tmp_path):
        with pytest.raises(WeightsError, match="no such file"):
            Sam2OfficialPropagator.from_pretrained(str(tmp_path / "sam2.pt"))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("direction", "starts", "expected"),
        [
            ("both", {7: 1}, [(1, {7}), (2, {7}), (0, {7})]),
            ("both", {7: 0, 4: 1}, [(0, {7}), (1, {4, 7}), (2, {4, 7}), (0, {4})]),
            ("both", {7: 2}, [(2, {7}), (1, {7}), (0, {7})]),
            ("forward", {7: 2}, [(2, {7})]),
            ("backward", {7: 0}, [(0, {7})]),
            ("backward", {7: 1, 4: 2}, [(2, {4}), (1, {4, 7}), (0, {4, 7})]),
        ],
    )
    def test_ids_and_frames(self, propagator, direction, starts, expected):
        run = propagator.propagate(
            PropagationRequest(Clip(), boxes(starts), direction=direction)
        )
        assert [(one.frame, set(one.objects)) for one in run] == expected

    @pytest.mark.slow
    def test_going_on(self, propagator):
        again = propagator.propagate(
            PropagationRequest(
                Clip(),
                boxes({7: 1}),
                direction="both",
                checkpoint={"done": np.array(1)},
            )
        )
        assert [one.frame for one in again] == [2, 0]

    @pytest.mark.slow
    def test_a_mask_prompt_and_clicks(self, propagator):
        mask = np.zeros((Clip.height, Clip.width), dtype=bool)
        mask[20:60, 30:90] = True
        prompts = [
            Prompt(1, 0, mask=mask),
            Prompt(
                2,
                0,
                points=np.array([[100.0, 70.0], [5.0, 5.0]]),
                point_signs=np.array([True, False]),
            ),
        ]
        (first, *_) = propagator.propagate(
            PropagationRequest(Clip(), prompts, overlap=True)
        )
        kept = first.objects[1].mask
        assert kept is not None and first.prompted == {1, 2}
        assert (kept & mask).sum() / (kept | mask).sum() > 0.95
