"""From reviewed captions of videos to new weights that caption them, by each door."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from click.testing import CliRunner

from fiftyone_regioncap import api
from fiftyone_regioncap.cli.main import main
from fiftyone_regioncap.core.errors import (
    BackendError,
    FieldError,
    LicenseError,
    OptionError,
    RegionCapError,
    WeightsError,
)
from fiftyone_regioncap.core.types import FrameMasks, ObjectMask
from fiftyone_regioncap.dataset.captions import (
    CaptionRecord,
    read_captions,
    write_captions,
)
from fiftyone_regioncap.dataset.tracks import TrackWriter
from fiftyone_regioncap.review.preferences import pairs, prefer, preferences
from fiftyone_regioncap.training.data import gather, split
from fiftyone_regioncap.training.options import DataOptions
from tests.support.dam import TINY, write_checkpoint
from tests.support.training import SMALL_MODELS

TEXTS = {1: "a red disc moves right", 2: "a blue brick stands"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dam")
    write_checkpoint(folder, TINY)
    return folder


def masks_of(frame: int) -> dict[int, ObjectMask]:
    rows, columns = np.mgrid[:72, :96]
    disc = (columns - 19 - frame) ** 2 + (rows - 32) ** 2 <= 11**2
    brick = (rows >= 40) & (rows < 56) & (columns >= 60) & (columns < 76)
    return {1: ObjectMask(disc, 1.0), 2: ObjectMask(brick, 1.0)}


@pytest.fixture
def dataset(fiftyone_database: str, videos: list[Path]) -> Iterator[fo.Dataset]:
    made = fo.Dataset()
    for path in videos:
        made.add_sample(fo.Sample(filepath=str(path)))
    made.compute_metadata()
    for sample in made:
        with TrackWriter(sample, "frames.tracks") as writer:
            for frame in range(24):
                writer.write(FrameMasks(frame, masks_of(frame)))
        write_captions(
            sample,
            "captions",
            [
                CaptionRecord(index, (0, 23), caption=text, review="accepted")
                for index, text in TEXTS.items()
            ],
        )
    yield made
    made.delete()


def options(base: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": "dam-video",
        "weights": str(base),
        "device": "cpu",
        "out": str(out),
        "minimum": 2,
        "held_out": 0.5,
        "epochs": 2,
        "batch_size": 2,
        "accumulation": 1,
        "recipe_options": {"rank": 2},
        **more,
    }


def test_train_then_caption(dataset: fo.Dataset, base: Path, tmp_path: Path) -> None:
    summary = api.train(
        dataset, **options(base, tmp_path, metrics=("rouge_l",)), progress=False
    )
    assert summary.ok and (summary.trained, summary.held_out) == (2, 2)
    assert summary.videos == (1, 1)
    assert all({"loss", "rouge_l"} <= set(m) for m in summary.fit.evaluations.values())
    card = (Path(summary.weights) / "README.md").read_text()
    assert "2 captions of 1 videos" in card and dataset.name in card
    assert dataset.get_run_info(summary.run) is not None
    assert list((tmp_path / "logs").glob("events.*"))
    compared = api.compare_captions(
        dataset,
        "captions",
        "captions_new",
        captioner="dam-video",
        weights=summary.weights,
        device="cpu",
        captioner_options={"max_new_tokens": 4},
        progress=False,
    )
    assert compared.ok and compared.found.pairs == len(
        list(pairs(dataset, "captions", "captions_new"))
    )
    revisions = {
        record.revision
        for sample in dataset
        for record in read_captions(sample, "captions_new")
    }
    assert len(revisions) == 1 and None not in revisions


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [name for name in SMALL_MODELS if name != "dam-video"]
)
def test_every_model_is_evaluated_while_it_trains(
    dataset: fo.Dataset, model: str, golden: Path, checkpoint: Path, tmp_path: Path
) -> None:
    small = SMALL_MODELS[model]
    base = small.weights(golden, checkpoint, tmp_path / "base")
    values = options(
        base,
        tmp_path / "out",
        model=small.captioner,
        recipe_options=small.recipe,
        epochs=1,
    )
    # Patch-ioner learns from captions alone, without regions to write some for.
    metrics = () if small.captioner == "patchioner" else ("rouge_l",)
    summary = api.train(dataset, **values, metrics=metrics, progress=False)
    (evaluated,) = summary.fit.evaluations.values()
    assert summary.ok and {"loss", *metrics} <= evaluated.keys()


def test_by_the_shell(dataset: fo.Dataset, base: Path, tmp_path: Path) -> None:
    dataset.name = "train-by-the-shell"
    command = (
        f"train dam-video --dataset {dataset.name} --captions captions --minimum 2 "
        f"--weights {base} --device cpu --epochs 1 --held-out 0 --out {tmp_path} "
        "--accumulation 1 --recipe-options rank=2 --export adapter --json"
    )
    run = CliRunner().invoke(main, command.split())
    assert run.exit_code == 0, run.output
    said = json.loads(run.stdout)
    assert (said["trained"], said["held_out"]) == (4, 0)
    files = {path.name for path in Path(said["weights"]).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= files
    run = CliRunner().invoke(main, ["train", "measured", "--dataset", dataset.name])
    assert run.exit_code == 2 and "dam-video" in run.output


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_processes_train_together(
    dataset: fo.Dataset, base: Path, tmp_path: Path, executor: str
) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    values = options(base, tmp_path, epochs=1, held_out=0.0, batch_size=1)
    summary = api.train(
        dataset, **values, executor=executor, processes=2, progress=False
    )
    # Two steps of two processes for four captions.
    assert summary.ok and summary.fit.steps == 2
    assert (Path(summary.weights) / "README.md").is_file()


def test_preferences_are_counted_blindly(dataset: fo.Dataset) -> None:
    for sample in dataset:
        write_captions(
            sample,
            "other",
            [
                CaptionRecord(1, (0, 23), caption="a ball"),
                CaptionRecord(2, (0, 23), caption=TEXTS[2]),
            ],
        )
    found = list(pairs(dataset, "captions", "other"))
    assert len(found) == 4
    assert all({pair.old, pair.new} == set(pair.blind) for pair in found)
    for pair in found:
        assert pair.blind[0] == (pair.new if pair.choice(0) == "new" else pair.old)
    prefer(dataset, "other", {found[0].id: "new", found[1].id: "old"})
    prefer(dataset, "other", {found[1].id: "new"})
    counted = preferences(dataset, "captions", "other")
    assert (counted.pairs, counted.equal) == (4, 2)
    assert counted.preferred == {"new": 2} and counted.chance == 0.5
    with pytest.raises(FieldError, match="no preference"):
        prefer(dataset, "other", {found[0].id: "best"})  # type: ignore[dict-item]
    with pytest.raises(OptionError, match="name another one"):
        api.compare_captions(dataset, "captions", "captions", progress=False)


def review(dataset: fo.Dataset, state: str) -> None:
    for sample in dataset:
        records = read_captions(sample, "captions")
        write_captions(
            sample,
            "captions",
            [replace(record, review=state) for record in records],  # type: ignore[arg-type]
            overwrite=True,
        )


def test_only_what_people_accepted_is_learned(dataset: fo.Dataset) -> None:
    first = dataset.first()
    records = read_captions(first, "captions")
    changed = [
        replace(records[0], review="edited", caption="a disc of a person's words"),
        replace(records[1], review="rejected"),
    ]
    write_captions(first, "captions", changed, overwrite=True)
    found = gather(dataset, DataOptions(), 8)
    texts = {example.text.caption for example in found.examples}
    assert texts == {changed[0].caption, *TEXTS.values()}
    assert found.left_out == {"rejected": 1}
    for example in found.examples:
        assert len(example.frames) == len(example.masks) == 8
        assert example.size == (72, 96)
    edited = gather(dataset, DataOptions(review=("edited",)), 8)
    assert len(edited.examples) == 1
    view = dataset.limit(1)
    assert len(gather(view, DataOptions(), 1).examples) == 1


def test_no_video_is_on_both_sides(dataset: fo.Dataset) -> None:
    found = gather(dataset, DataOptions(), 1)
    examples = found.examples
    learned, held_out = split(found, 0.5, 0)
    assert {e.path for e in learned}.isdisjoint(e.path for e in held_out)
    assert learned and held_out and len(learned) + len(held_out) == len(examples)
    assert split(found, 0, 0) == (examples, [])
    with pytest.raises(FieldError, match="of 1 videos"):
        split(replace(found, examples=learned), 0.5, 0)


Break = Callable[[fo.Dataset, dict[str, Any]], None]


def none_accepted(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    review(dataset, "unreviewed")


def another_kind(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    dataset.add_sample_field("notes", fo.StringField)
    values["captions"] = ("notes",)


def missing_videos(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    for sample in dataset:
        sample.filepath = f"/nowhere/{Path(sample.filepath).name}"
        sample.save()


def one_video(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    dataset.delete_samples(dataset.skip(1))


def unchecked(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    values["checked"] = True


def not_a_checkpoint(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    values["weights"] = values["out"]
    Path(values["out"]).mkdir(exist_ok=True)


def unknown_recipe_option(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    values["recipe_options"] = {"ranks": 2}


def undecidable(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    values["best"] = "cider"


def half_on_a_cpu(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    values["precision"] = "float16"


def options_of_captioning(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    values["model_options"] = {"max_new_tokens": 3}


def weights_of_no_field(dataset: fo.Dataset, values: dict[str, Any]) -> None:
    values["source_weights"] = {"others": 2.0}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        pytest.param(none_accepted, FieldError, "4 unreviewed", id="none accepted"),
        pytest.param(another_kind, FieldError, "notes", id="field of another kind"),
        pytest.param(missing_videos, FieldError, "is missing", id="videos missing"),
        pytest.param(one_video, FieldError, "held_out=0.5 of 1", id="empty side"),
        pytest.param(unchecked, FieldError, "check_captions", id="not checked"),
        pytest.param(not_a_checkpoint, WeightsError, "missing", id="no checkpoint"),
        pytest.param(unknown_recipe_option, OptionError, "rank", id="recipe's option"),
        pytest.param(
            options_of_captioning, OptionError, "recipe_options", id="model's option"
        ),
        pytest.param(half_on_a_cpu, OptionError, "needs a GPU", id="float16 on a CPU"),
        pytest.param(undecidable, OptionError, "best='cider'", id="undecidable"),
        pytest.param(weights_of_no_field, OptionError, "others", id="source weights"),
    ],
)
def test_bad_input_is_told_before_the_first_step(
    dataset: fo.Dataset,
    base: Path,
    tmp_path: Path,
    damage: Break,
    error: type[RegionCapError],
    message: str,
) -> None:
    values = options(base, tmp_path / "out")
    damage(dataset, values)
    with pytest.raises(error, match=message):
        api.train(dataset, **values, progress=False)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_a_folder_of_another_training(
    dataset: fo.Dataset, base: Path, tmp_path: Path
) -> None:
    values = options(base, tmp_path, epochs=1)
    first = api.train(dataset, **values, progress=False)
    again = api.train(dataset, **values, progress=False)
    assert again.fit.evaluations == first.fit.evaluations
    with pytest.raises(OptionError, match="epochs=1, not 2"):
        api.train(dataset, **{**values, "epochs": 2}, progress=False)
    with pytest.raises(OptionError, match="recipe_options"):
        changed = {**values, "recipe_options": {"rank": 3}}
        api.train(dataset, **changed, progress=False)
    anew = {**values, "epochs": 2, "restart": True}
    assert api.train(dataset, **anew, progress=False).fit.steps == 2


def test_a_license_that_forbids_changes(
    dataset: fo.Dataset,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fiftyone_regioncap.captioning.dam import configuration

    closed = replace(configuration.DAM_VIDEO, derivatives=False)
    monkeypatch.setattr(configuration, "DAM_VIDEO", closed)
    values = options(base, tmp_path, epochs=1)
    with pytest.raises(LicenseError, match="forbids"):
        api.train(dataset, **values, progress=False)
    api.train(dataset, **values, accept_license=True, progress=False)
    record = json.loads((tmp_path / "weights" / "training_record.json").read_text())
    assert "own use" in record["provenance"]["consent"]


def test_out_of_memory_says_what_to_lower(
    dataset: fo.Dataset,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from fiftyone_regioncap.captioning.dam.training import DamNetwork

    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DamNetwork, "forward", fail)
    with pytest.raises(BackendError, match=r"batch_size \(now 2\) to 1"):
        api.train(dataset, **options(base, tmp_path), progress=False)
