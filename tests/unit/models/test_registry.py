from __future__ import annotations

from pathlib import Path

import pytest

from fiftyone_regioncap.captioning.measured import MeasuredCaptioner
from fiftyone_regioncap.captioning.registry import CAPTIONERS
from fiftyone_regioncap.core.errors import BackendError, OptionError, WeightsError
from fiftyone_regioncap.core.options import fields_of
from fiftyone_regioncap.models.registry import ModelCard, ModelRegistry, ModelSpec
from fiftyone_regioncap.propagation.registry import PROPAGATORS


@pytest.mark.parametrize("registry", [CAPTIONERS, PROPAGATORS], ids=lambda r: r.kind)
def test_cards_are_complete(registry: ModelRegistry[object]) -> None:
    for name, card in registry.items():
        assert card.name == name
        assert card.summary and card.license
        assert card.summary[0] not in "." and not card.summary.endswith(".")


@pytest.mark.parametrize(
    ("registry", "spec", "error", "message"),
    [
        pytest.param(
            CAPTIONERS,
            ModelSpec("measured", options={"foo": 1}),
            OptionError,
            "captioner measured: unknown option 'foo'; there are none",
            id="option of a captioner without any",
        ),
        pytest.param(
            PROPAGATORS,
            ModelSpec("mobilesam", options={"sidee": 512}),
            OptionError,
            "did you mean 'side'",
            id="misspelled option",
        ),
        pytest.param(
            PROPAGATORS,
            ModelSpec("mobilesam", options={"side": "big"}),
            OptionError,
            "side='big': give an integer from 64 to 2048",
            id="value of another type",
        ),
        pytest.param(
            PROPAGATORS,
            ModelSpec("flow", options={"side": 512}),
            OptionError,
            "propagator flow: unknown option 'side'",
            id="option of another backend",
        ),
        pytest.param(
            PROPAGATORS,
            ModelSpec("auto", weights="/nowhere/sam.pt"),
            BackendError,
            "no weights at /nowhere/sam.pt",
            id="weights that are missing, of any model",
        ),
        pytest.param(
            PROPAGATORS,
            ModelSpec("flow", weights="/nowhere/sam.pt"),
            OptionError,
            "the propagator flow has no weights",
            id="weights of a model that has none",
        ),
        pytest.param(
            CAPTIONERS,
            ModelSpec("ureca"),
            BackendError,
            "ureca needs weights: a folder",
            id="weights that must be named",
        ),
        pytest.param(
            CAPTIONERS,
            ModelSpec("dam", weights="/no/such/folder"),
            BackendError,
            "no weights at /no/such/folder",
            id="weights that are not there",
        ),
        pytest.param(
            CAPTIONERS,
            ModelSpec("nobody"),
            BackendError,
            "no captioner 'nobody'; choose one of measured, ",
            id="unknown name",
        ),
    ],
)
def test_specifications_are_checked_before_loading(
    registry: ModelRegistry[object],
    spec: ModelSpec,
    error: type[Exception],
    message: str,
) -> None:
    for act in (registry.check, registry.load):
        with pytest.raises(error, match=message):
            act(spec)


def test_named_weights_never_fall_back_to_a_model_without(tmp_path: Path) -> None:
    torn = tmp_path / "torn.pt"
    torn.write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match=r"not sam2.*not mobilesam"):
        PROPAGATORS.load(ModelSpec("auto", weights=str(torn)))


def test_what_is_loaded_is_taken_as_it_is() -> None:
    captioner, reasons = MeasuredCaptioner(), list[str]()
    assert CAPTIONERS.obtain(captioner, reasons) is captioner
    assert not reasons
    CAPTIONERS.obtain(ModelSpec("measured"), reasons)
    assert reasons == ["captioner measured: as asked"]


def test_other_packages_add_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "other_captioner-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: other-captioner\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[regioncap.tests]\nother = other_captioner:CARD\nbroken = not_there:CARD\n"
    )
    (tmp_path / "other_captioner.py").write_text(
        "from fiftyone_regioncap.models.registry import ModelCard\n"
        "CARD = ModelCard('other', 'another', 'other_captioner:M', '-', True)\n"
        "class M:\n"
        "    @classmethod\n"
        "    def from_pretrained(cls, weights, *, device, options):\n"
        "        return cls()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: ModelRegistry[object] = ModelRegistry(
        "captioner", dict(CAPTIONERS.entries), "regioncap.tests"
    )
    card = registry["other"]
    assert isinstance(card, ModelCard)
    assert type(registry.load(ModelSpec("other"))[0]).__name__ == "M"
    assert "other" in registry.available() and "broken" not in registry.available()
    with pytest.raises(BackendError, match="'broken' cannot be imported"):
        registry["broken"]


def test_what_is_stored_of_a_specification_holds_no_secret() -> None:
    for registry in (CAPTIONERS, PROPAGATORS):
        for name, card in registry.items():
            values = {field.name: "x" for field in fields_of(card.options)}
            shown = ModelSpec(name, options=values).public().options
            secret = {f.name for f in fields_of(card.options) if f.declaration.secret}
            assert shown.keys() == values.keys() - secret
    spec = ModelSpec(
        "openai",
        "https://someone:password@gpu.example/v1",
        options={"base_url": "http://a:b@c/v1", "api_key": "sk-secret", "frames": 2},
    )
    assert spec.public() == ModelSpec(
        "openai",
        "https://gpu.example/v1",
        options={"base_url": "http://c/v1", "frames": 2},
    )
