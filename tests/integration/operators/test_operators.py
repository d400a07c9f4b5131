from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.core.config as foc
import fiftyone.operators as foo
import pytest
import yaml
from fiftyone.operators.delegated import DelegatedOperationService
from fiftyone.operators.executor import ExecutionContext

from fiftyone_regioncap import api
from fiftyone_regioncap.core.types import Prompt
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.exporters import FORMATS, importable_formats
from fiftyone_regioncap.jobs import board
from fiftyone_regioncap.operations import OPERATIONS
from operators._forms import parameters
from tests.support import ROOT

URI = "@fiftyone-regioncap/regioncap"


@pytest.fixture(scope="module", autouse=True)
def plugin(fiftyone_database: str) -> Iterator[None]:
    """FiftyOne finds this plugin."""
    before = fo.config.plugins_dir
    fo.config.plugins_dir = str(ROOT)
    yield
    fo.config.plugins_dir = before


@pytest.fixture
def dataset(videos: list[Path], tmp_path: Path, monkeypatch) -> Iterator[fo.Dataset]:
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path))
    prompts = [Prompt(7, 3, box=(10, 20, 34, 44), label="disc")]
    made, _, _ = datasets.add_videos("operators", videos, prompts)
    yield made
    made.delete()


def form(name: str, dataset: fo.Dataset, **params: Any) -> dict[str, Any]:
    """The inputs of an operator's form, by name."""
    operator = foo.get_operator(f"{URI}/{name}")
    context = ExecutionContext(
        {"dataset_name": dataset.name, "view": [], "params": params},
        operator_uri=operator.uri,
    )
    return operator.resolve_input(context).to_json()["type"]["properties"]


def invalid(inputs: dict[str, Any]) -> dict[str, str]:
    return {k: v["error_message"] for k, v in inputs.items() if v.get("invalid")}


def test_every_operator_of_the_manifest_is_registered():
    manifest = yaml.safe_load((ROOT / "fiftyone.yml").read_text())
    names = {
        operator.name
        for operator in foo.list_operators()
        if operator.plugin_name == manifest["name"]
    }
    expected = {*manifest["operators"], *manifest.get("panels", ())}
    assert names == expected - {"install_requirements"}


BLOCKED = """
import sys
import importlib.util
import fiftyone

sys.modules[sys.argv[2]] = None  # as if it were not installed
spec = importlib.util.spec_from_file_location(
    "plugin", sys.argv[1], submodule_search_locations=[sys.argv[3]]
)
plugin = importlib.util.module_from_spec(spec)
sys.modules["plugin"] = plugin
spec.loader.exec_module(plugin)


class Context:
    def register(self, operator):
        print(operator().config.name)


heavy = {"torch", "transformers", "cv2", "matplotlib", "supervision"}
before = heavy & set(sys.modules)
plugin.register(Context())
print("imported", *sorted(heavy & set(sys.modules) - before))
"""


def registered(missing: str) -> list[str]:
    """What the plugin registers in a process of its own without a package."""
    arguments = [str(ROOT / "__init__.py"), missing, str(ROOT)]
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return run.stdout.split()


def test_a_missing_package_leaves_an_operator_that_says_so():
    assert registered("filelock")[:1] == ["install_requirements"]


def test_registering_imports_no_models():
    names = registered("no_such_package")
    assert "propagate_masks" in names and "region_captions" in names
    assert names[names.index("imported") + 1 :] == []


@pytest.mark.parametrize(
    ("name", "asks"),
    [
        ("propagate_masks", {"prompts", "overwrite", "propagator", "preview"}),
        ("caption_tracks", {"tracks", "overwrite", "captioner", "window"}),
        (
            "propagate_and_caption",
            {"prompts", "overwrite", "overwrite_captions", "captioner", "preview"},
        ),
    ],
)
def test_forms_ask_for_what_is_needed_and_are_valid_as_they_are(dataset, name, asks):
    inputs = form(name, dataset)
    assert asks <= set(inputs)
    assert "view_target" in inputs
    assert not invalid(inputs)


@pytest.mark.parametrize(
    ("name", "params", "field", "says"),
    [
        (
            "propagate_masks",
            {"output": "frames.prompts", "advanced": True},
            "output",
            "something else",
        ),
        (
            "propagate_masks",
            {"output": "a b", "advanced": True},
            "output",
            "no field name",
        ),
        (
            "export_captions",
            {"path": "exported"},
            "path",
            "give the whole path",
        ),
        (
            "import_captions",
            {"path": {"absolute_path": "exported"}},
            "path",
            "give the whole path",
        ),
        (
            "propagate_masks",
            {"output_dir": "masks", "advanced": True},
            "output_dir",
            "give the whole path",
        ),
        (
            "propagate_masks",
            {"propagator_weights": "/nowhere/sam.pt"},
            "refusal",
            "no weights at /nowhere/sam.pt",
        ),
        (
            "caption_tracks",
            {"output": "filepath", "advanced": True},
            "output",
            "FiftyOne's own",
        ),
        (
            "caption_tracks",
            {"captioner": "dam-video"},
            "accept_license",
            "Accept the license",
        ),
        (
            "propagate_masks",
            {"propagator": "mobilesam", "propagator_options": {"side": 7}},
            "refusal",
            "side=7: give an integer from 64 to 2048",
        ),
    ],
)
def test_forms_refuse_what_would_fail(
    dataset, monkeypatch, tmp_path, name, params, field, says
):
    monkeypatch.setenv("REGIONCAP_CONFIG", str(tmp_path / "config"))
    assert says in invalid(form(name, dataset, **params))[field]


def test_forms_say_why_they_cannot_be_filled(fiftyone_database, videos):
    empty = fo.Dataset()
    empty.add_sample(fo.Sample(filepath=str(videos[0])))
    try:
        assert (
            "No field marks objects"
            in invalid(form("propagate_masks", empty))["refusal"]
        )
        assert "No frame field" in invalid(form("caption_tracks", empty))["refusal"]
        assert "dataset of images" in invalid(form("caption_regions", empty))["refusal"]
    finally:
        empty.delete()


def test_options_of_the_chosen_backend_appear(dataset):
    def own(name: str) -> set[str]:
        inputs = form("propagate_masks", dataset, propagator=name, advanced=True)
        return set(inputs[f"propagator_options_of_{name}"]["type"]["properties"])

    assert "side" in own("mobilesam") and "image_size" in own("sam2")
    assert own("flow") == {"sharpen"}


def test_options_of_what_was_chosen_before_do_not_count(dataset):
    # What the App sends: defaults of models and formats that were shown before.
    before = {
        "propagator_options_of_mobilesam": {"side": 7},
        "propagator_options_of_flow": {"sharpen": False},
    }
    params = {"propagator": "flow", "advanced": True, **before}
    assert not invalid(form("propagate_masks", dataset, **params))
    params["propagator"] = "mobilesam"
    assert "side=7" in invalid(form("propagate_masks", dataset, **params))["refusal"]


PICKED = {"absolute_path": "/data/picked.txt", "type": "file"}
OWN = "captioner_options_of_patchioner"


@pytest.mark.parametrize(
    ("name", "params", "converted"),
    [
        ("caption", {"captioner": "patchioner", OWN: {"memory": PICKED}}, "memory"),
        (
            "caption",
            {"captioner": "patchioner", "captioner_options": {"memory": PICKED}},
            "memory",
        ),
        (
            "train",
            {
                "model": "patchioner",
                "recipe_options_of_patchioner": {"entities": PICKED},
            },
            "entities",
        ),
        ("caption", {"weights": PICKED}, "weights"),
        ("train", {"out": PICKED}, "out"),
    ],
    ids=["a model's", "a model's by name", "a training's", "a setting", "an own"],
)
def test_a_file_that_was_picked_is_a_path(
    name: str, params: dict[str, Any], converted: str
) -> None:
    found = parameters(OPERATIONS[name], params)
    groups = [found, *(one for one in found.values() if isinstance(one, dict))]
    given = [one[converted] for one in groups if converted in one]
    assert given == ["/data/picked.txt"]


def test_a_file_that_was_taken_back_is_none() -> None:
    none = {"memory": {"absolute_path": ""}, "resize_dim": "518"}
    params = {"captioner": "patchioner", OWN: none, "weights": {"absolute_path": None}}
    found = parameters(OPERATIONS["caption"], params)
    assert found == {
        "captioner": "patchioner",
        "captioner_options": {"resize_dim": 518},
    }


def test_a_form_takes_a_file_that_was_picked_for_a_model(
    dataset: fo.Dataset, checkpoint: Path, tmp_path: Path
) -> None:
    api.propagate(dataset, propagator="flow", progress=False)
    inputs = form(
        "caption_tracks",
        dataset,
        captioner="patchioner",
        captioner_weights=str(checkpoint),
        advanced=True,
        **{OWN: {"memory": {"absolute_path": str(tmp_path / "memory.safetensors")}}},
    )
    assert "preview" in inputs and not invalid(inputs)


@pytest.mark.parametrize(
    ("name", "input", "offered"),
    [
        ("dense_caption", "captioner", {"patchioner"}),
        ("import_captions", "format", set(importable_formats())),
        ("export_captions", "format", set(FORMATS.available())),
    ],
)
def test_only_what_will_do_is_offered(dataset, name, input, offered):
    choices = form(name, dataset)[input]["view"]["choices"]
    assert {choice["value"] for choice in choices} == offered


def test_few_options_are_shown_at_first(dataset):
    few = form("propagate_masks", dataset)
    many = form("propagate_masks", dataset, advanced=True)
    assert "patience" in many and "patience" not in few and len(few) < len(many)


def test_operators_are_callable_from_python_with_defaults(dataset):
    operator = foo.get_operator(f"{URI}/propagate_and_caption")
    summary = operator(dataset.limit(1).view(), propagator="flow", captioner="measured")
    assert summary.ok and summary.captions == 1
    assert dataset.first()["captions_status"] == "complete"
    assert not dataset.last().has_field("captions_status") or (
        dataset.last()["captions_status"] is None
    )


def test_regions_are_embedded_by_an_operator(dataset, checkpoint):
    assert (
        "No field holds captions" in invalid(form("embed_regions", dataset))["refusal"]
    )
    api.propagate(dataset, propagator="flow", progress=False)
    api.caption(dataset, captioner="measured", progress=False)
    inputs = form("embed_regions", dataset)
    assert "frames.tracks" in inputs["tracks"]["type"]["values"]
    assert not invalid(inputs)
    embed = foo.get_operator(f"{URI}/embed_regions")
    summary = embed(dataset, weights=str(checkpoint))
    assert summary.ok and summary.embedded == 2
    vectors = dataset.values("captions.detections.region_embedding", unwind=True)
    assert all(vector.shape == (64,) for vector in vectors)


@pytest.mark.parametrize("page", ["README.md", "docs/app.md"])
def test_pages_say_what_makes_fiftyone_offer_to_schedule(page):
    text = (ROOT / page).read_text()
    assert foc.FiftyOneConfig({}).allow_legacy_orchestrators is False
    assert "FIFTYONE_ALLOW_LEGACY_ORCHESTRATORS=true" in text
    assert "fiftyone delegated launch" in text


def test_operators_run_delegated_and_leave_their_summary(dataset):
    operator = foo.get_operator(f"{URI}/propagate_masks")
    operator(dataset, delegate=True, propagator="flow", prompts="frames.prompts")
    service = DelegatedOperationService()
    service.execute_queued_operations(limit=1, log=False)
    (done,) = service.list_operations(operator=operator.uri)
    assert done.run_state == "completed", done.result.error
    assert done.result.result["samples"] == 2
    assert dataset.count("frames.tracks.detections") == 48
    service.delete_operation(done.id)


def test_a_delegated_run_of_which_every_sample_failed_has_failed(dataset):
    gone = [f"/nowhere/{number}.mp4" for number in range(len(dataset))]
    dataset.set_values("filepath", gone)
    operator = foo.get_operator(f"{URI}/propagate_masks")
    operator(dataset, delegate=True, propagator="flow", prompts="frames.prompts")
    service = DelegatedOperationService()
    service.execute_queued_operations(limit=1, log=False)
    (done,) = service.list_operations(operator=operator.uri)
    assert done.run_state == "failed"
    assert "/nowhere/0.mp4" in done.result.error
    (listed,) = board.jobs(1, dataset._doc.id)
    assert listed["state"] == "failed" and "/nowhere/0.mp4" in listed["errors"][0]
    service.delete_operation(done.id)


def test_choices_of_a_model_may_stay_at_their_default(dataset, tmp_path):
    own = {"dtype": "none", "quantization": "none", "max_new_tokens": 4}
    inputs = form(
        "caption_tracks",
        dataset,
        tracks="frames.prompts",
        captioner="dam-video",
        captioner_weights=str(tmp_path),
        advanced=True,
        captioner_options_of_dam_video=own,
    )
    assert "dtype" not in str(invalid(inputs))
