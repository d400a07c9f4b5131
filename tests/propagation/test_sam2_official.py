from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from fiftyone_regioncap.errors import BackendError, WeightsError
from fiftyone_regioncap.propagation.sam2_official import Sam2OfficialPropagator
from fiftyone_regioncap.regions import Prompt

INSTALLED = importlib.util.find_spec("sam2") is not None


@pytest.mark.skipif(INSTALLED, reason="facebook's sam2 package is installed")
def test_without_the_package_the_error_says_what_to_do():
    with pytest.raises(BackendError, match="pip install sam2"):
        Sam2OfficialPropagator.from_pretrained("sam2.1_hiera_tiny.pt")


@pytest.mark.skipif(not INSTALLED, reason="facebook's sam2 package is not installed")
class TestWithThePackage:
    @pytest.fixture(scope="class")
    def propagator(self):
        from sam2.build_sam import build_sam2_video_predictor

        from fiftyone_regioncap.propagation.base import PropagatorInfo

        predictor = build_sam2_video_predictor(
            "configs/sam2.1/sam2.1_hiera_t.yaml", ckpt_path=None, device="cpu"
        )
        info = PropagatorInfo("sam2-official", "random", "", "Apache-2.0")
        return Sam2OfficialPropagator(predictor, info)

    def test_unknown_files(self, tmp_path):
        with pytest.raises(WeightsError, match="no such file"):
            Sam2OfficialPropagator.from_pretrained(str(tmp_path / "sam2.pt"))

    @pytest.mark.slow
    def test_ids_frames_and_going_on(self, propagator):
        class Clip:
            height, width = 90, 140

            def __len__(self):
                return 4

            def __getitem__(self, index):
                return np.full((90, 140, 3), 40 * index, dtype=np.uint8)

        prompts = [Prompt(7, 1, box=(10, 10, 60, 60))]
        run = propagator.propagate(Clip(), prompts, direction="both")
        whole = [(one.frame, set(one.objects)) for one in run]
        assert whole == [(1, {7}), (2, {7}), (3, {7}), (0, {7})]
        again = propagator.propagate(
            Clip(), prompts, direction="both", checkpoint={"done": np.array(2)}
        )
        assert [one.frame for one in again] == [3, 0]
