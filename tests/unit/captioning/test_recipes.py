"""What the recipes of all captioners load alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fiftyone_regioncap.captioning.dam.training import DamTraining
from fiftyone_regioncap.captioning.dynrefer.training import DynReferTraining
from fiftyone_regioncap.captioning.ureca.training import UrecaTraining
from fiftyone_regioncap.core.errors import OptionError, WeightsError


@pytest.mark.parametrize(
    ("recipe", "error", "says"),
    [
        (DynReferTraining, OptionError, "dtype='float16'.*float32.*bfloat16"),
        (DamTraining, WeightsError, "is no folder"),
        (UrecaTraining, WeightsError, "is no folder"),
    ],
    ids=["dynrefer computes in no float16", "dam does", "ureca does"],
)
def test_a_number_format_is_refused_where_the_captioner_has_none(
    recipe: Any, error: type[Exception], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        recipe.from_pretrained(tmp_path / "none", device="cpu", dtype=torch.float16)
