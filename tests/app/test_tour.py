"""A person goes from the main job's captions to files, in the App alone.

The same with the demo's clip makes the pictures of the documentation: see
``scripts/pictures.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from PIL import Image

from fiftyone_regioncap import api
from fiftyone_regioncap.cli import demo
from fiftyone_regioncap.core.types import Prompt, box_of_mask
from fiftyone_regioncap.dataset import videos as datasets
from fiftyone_regioncap.propagation.mobilesam.configuration import WEIGHTS
from fiftyone_regioncap.system import assets
from tests.support.app import SECONDS, AppPage, box_of

pytestmark = [pytest.mark.app, pytest.mark.timeout(1500)]

COLORS = ["#ff6d04", "#2f8fd8", "#d6409f", "#8b63e6", "#0f9aa8", "#c24d2c"]
SHOWN = ("LABELS", "FRAME LABELS")
EDITED = "One that a person looked at — «ecco» 🐇"


@dataclass(frozen=True)
class Scene:
    """What the main job is run on, and what is looked for afterwards.

    Attributes:
        videos: with the prompts of each.
        stop: one past the last frame that is propagated to.
        window: frames that each caption is of.
        word: a word of the query, which the best captions have.
        phrase: one that all captions have that are found.
    """

    videos: dict[Path, list[Prompt]]
    stop: int
    window: int
    word: str
    phrase: str


@pytest.fixture
def scene(request: pytest.FixtureRequest) -> Scene:
    """The annotated clips, or the clip of the demo."""
    if request.param == "demo":
        video = assets.fetch(demo.CLIP)
        more = [
            Prompt(3, 110, box=(94, 426, 260, 577), label="stone"),
            Prompt(4, 110, box=(805, 0, 1085, 350), label="tree"),
        ]
        return Scene({video: [*demo.PROMPTS, *more]}, 132, 12, "rabbit", "nearly still")
    clips: Path = request.getfixturevalue("clips")
    videos = {
        clip / "clip.mp4": _prompts(clip, frame=4)
        for clip in sorted(clips.iterdir())
        if (clip / "masks").is_dir()
    }
    return Scene(videos, 8, 4, "dog", "of the frame")


def _prompts(clip: Path, frame: int) -> list[Prompt]:
    """Boxes around the annotated objects."""
    objects = json.loads((clip / "meta.json").read_text())["objects"]
    masks = np.asarray(Image.open(clip / "masks" / f"{frame:05}.png"))
    return [
        Prompt(
            found["id"],
            frame,
            box=box_of_mask(masks == found["id"]),
            label=found["category"],
        )
        for found in objects
        if (masks == found["id"]).any()
    ]


@pytest.fixture
def dataset(scene: Scene, fiftyone_database: str) -> Iterator[fo.Dataset]:
    """Masks and captions of the main job."""
    assets.fetch(WEIGHTS)
    for video, prompts in scene.videos.items():
        made, _, _ = datasets.add_videos("tour", [video], prompts)
    summary = api.propagate_and_caption(
        made,
        stop=scene.stop,
        window=scene.window,
        progress=False,
    )
    assert summary.ok
    config = made.app_config
    config.color_scheme = fo.ColorScheme(color_by="instance", color_pool=COLORS)
    config.sidebar_groups = fo.DatasetAppConfig.default_sidebar_groups(made)
    for group in config.sidebar_groups:
        group.expanded = group.name.upper() in SHOWN
    made.save()
    yield made
    made.delete()


def captions(dataset: fo.Dataset) -> dict[str, fo.TemporalDetection]:
    """The captions as they are in the database now, by id."""
    dataset.reload()
    labels = dataset.values("captions.detections", unwind=True)
    return {label.id: label for label in labels}


@dataclass(frozen=True)
class Visitor:
    """A person at the App.

    Attributes:
        app: the App in front of them.
        page: what they see.
        dataset: what it is of.
        pictures: where pictures of what they see go.
    """

    app: AppPage
    page: Any
    dataset: fo.Dataset
    pictures: Path

    def take_picture(self, name: str) -> None:
        """Once all is drawn and no tooltip is open."""
        self.page.mouse.move(640, 5)
        self.page.wait_for_timeout(4000)
        self.page.screenshot(path=self.pictures / f"{name}.png")

    def tags(self, count: int) -> list[list[str]]:
        """What is written on the first clips in the grid when it has so many."""
        self.page.get_by_text(f"{count} clip").first.wait_for()
        tags = self.page.locator("[data-cy=tag-captions]")
        before: list[str] = []
        # The grid is drawn anew, some clips at a time, after it says how many it has.
        for _ in range(SECONDS):
            self.page.wait_for_timeout(1000)
            texts = tags.all_inner_texts()
            if texts == before and min(count, 6) <= len(texts) <= count:
                return [text.split(", ") for text in texts]
            before = texts
        raise AssertionError(f"the grid does not settle on {count} clips: {before}")

    def use_eyes(self, *names: str) -> None:
        """Shows attributes of the captions on clips, or hides them."""
        arrow = self.page.locator("[data-cy=sidebar-field-arrow-enabled-captions]")
        arrow.click()
        for name in names:
            self.page.get_by_role("button", name=f"{name} in overlays").click()
        arrow.click()

    def search(self, word: str, phrase: str) -> None:
        """Finds captions with a phrase, those with a word before the others."""
        expected = {
            label.id
            for label in captions(self.dataset).values()
            if phrase in label.caption
        }
        count = min(len(expected), 25)
        self.app.open_operator("search_captions")
        query = self.page.get_by_role("dialog").get_by_role("textbox").first
        self.app.fill(query, f'{word} "{phrase}"')
        self.app.execute("with words of the query")
        self.app.close()

        labels = captions(self.dataset)
        paths = [f"captions.detections.{name}" for name in ("id", "search_score")]
        ids, scores = self.dataset.values(paths, unwind=True)
        found = sorted(
            (-score, labels[label_id].label)
            for label_id, score in zip(ids, scores, strict=True)
            if score is not None and label_id in expected
        )
        assert len(found) == count == sum(score is not None for score in scores)
        named = [label == word for _, label in found]
        assert any(named) and named == sorted(named, reverse=True)

        self.tags(count)
        self.use_eyes("Show search_score", "Show caption")
        shown = [(label, float(score)) for label, score, *_ in self.tags(count)]
        for (label, score), (best, of) in zip(shown, found, strict=False):
            assert (label, score) == (of, pytest.approx(-best, abs=1e-3))
        self.take_picture("search")

    def look_at_a_video(self) -> None:
        """Opens a sample of the whole dataset, with its tracks on the timeline."""
        self.use_eyes("Hide search_score")
        self.page.locator("[data-cy=btn-clear-view-bar]").click()
        self.page.get_by_text(f"{len(self.dataset)} sample").first.wait_for()
        self.page.locator("[data-cy=tag-captions]").first.wait_for()
        self.page.wait_for_timeout(2000)
        self.page.locator("[data-cy=looker]").first.click()
        self.page.get_by_role("button", name="Show tracks").click()
        box = box_of(self.page.get_by_test_id("timeline-ruler"))
        self.page.mouse.click(box["x"] + box["width"] / 5, box["y"] + 12)
        self.take_picture("timeline")
        self.page.mouse.click(5, 600)
        self.page.locator("[data-cy=modal]").wait_for(state="hidden")

    def open_map(self) -> None:
        """Puts all captions on a map, beside the panel for reviews."""
        self.app.open_operator("embed_captions")
        self.app.execute("captions on the map")
        self.app.close()
        known = captions(self.dataset)
        points = self.dataset.load_brain_results("captions_map").label_ids
        assert set(points) == set(known)

        self.tags(len(points))
        self.app.open_panel("Region captions")
        self.page.get_by_text(f"0 of {len(points)}").wait_for()
        self.page.get_by_title("Split vertically").first.click()
        self.page.get_by_text("captions_map").first.click()
        self.page.get_by_label("Color by").click()
        choice = "captions.detections.label"
        self.page.get_by_role("combobox", name="Color by").fill(choice)
        self.page.get_by_role("option", name=choice).click()
        legend = self.page.get_by_label("Color legend")
        for label in {label.label for label in known.values()}:
            legend.get_by_text(label, exact=True).wait_for()

    def lasso(self) -> set[str]:
        """Draws around the left half of the map; gives the captions in there."""
        self.page.get_by_role("button", name="Select", exact=True).click()
        box = box_of(self.page.locator(".emb-plot-scene"))
        corners = ((0.01, 0.01), (0.5, 0.01), (0.5, 0.99), (0.01, 0.99), (0.01, 0.03))
        path = [
            (box["x"] + x * box["width"], box["y"] + y * box["height"])
            for x, y in corners
        ]
        with self.page.expect_response("**/embeddings/v2/lasso-stage") as answer:
            self.page.mouse.move(*path[0])
            self.page.mouse.down()
            for x, y in path[1:]:
                self.page.mouse.move(x, y, steps=10)
            self.page.mouse.up()
        chosen = set(answer.value.json()["kwargs"]["ids"])
        known = captions(self.dataset)
        assert 0 < len(chosen) < len(known) and chosen <= set(known)
        assert {label for label, *_ in self.tags(len(chosen))} <= {
            known[label_id].label for label_id in chosen
        }
        return chosen

    def review(self, chosen: set[str]) -> dict[str, str]:
        """Accepts a caption and edits the next one; gives the new texts."""
        before = captions(self.dataset)
        self.page.get_by_text(f"0 of {len(chosen)}").wait_for()
        self.page.get_by_role("button", name="Accept", exact=True).click()
        self.page.get_by_text(f"1 of {len(chosen)}").wait_for()
        self.page.get_by_role("button", name="Edit", exact=True).click()
        text = self.page.get_by_role("dialog").locator("textarea").first
        self.app.fill(text, EDITED)
        self.page.get_by_role("button", name="Save", exact=True).click()
        self.page.get_by_text(f"2 of {len(chosen)}").wait_for()
        after = captions(self.dataset)
        reviews = {
            label.review: label_id
            for label_id, label in after.items()
            if label.review != "unreviewed"
        }
        accepted, edited = reviews.pop("accepted"), reviews.pop("edited")
        assert not reviews and {accepted, edited} <= chosen
        assert after[accepted].caption == before[accepted].caption
        assert after[edited].caption == EDITED
        assert after[edited].source_caption == before[edited].caption
        self.tags(len(chosen))  # the lasso is still there
        self.take_picture("map")
        panel = self.page.locator("[data-cy=panel-content-region_captions]")
        panel.screenshot(path=self.pictures / "review.png")
        return {label_id: after[label_id].caption for label_id in (accepted, edited)}

    def export(self, folder: Path, texts: set[str]) -> None:
        """Writes what was reviewed, and nothing else."""
        self.app.open_operator("export_captions")
        dialog = self.page.get_by_role("dialog")
        self.app.choose("coco: ", "jsonl: ")
        self.app.fill(dialog.get_by_role("textbox").first, str(folder))
        chip = dialog.get_by_role("button", name="unreviewed")
        chip.get_by_test_id("CancelIcon").click()
        self.take_picture("export")
        self.app.execute("Summary")
        self.app.close()
        lines = (folder / "tracks.jsonl").read_text().splitlines()
        tracks = [json.loads(line) for line in lines]
        written = [c["caption"] for track in tracks for c in track["captions"]]
        assert set(written) == texts and len(written) == len(texts)
        assert json.loads((folder / "manifest.json").read_text())
        for track in tracks:
            assert (folder / track["video"]).stat().st_size > 0
            assert track["masks"]


@pytest.mark.parametrize(
    "scene", ["clips", pytest.param("demo", marks=pytest.mark.slow)], indirect=True
)
def test_a_person_tours_the_app(
    scene: Scene,
    dataset: fo.Dataset,
    serve: Callable[[str], str],
    page: Any,
    app: AppPage,
    artifacts: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    pictures = artifacts / request.node.callspec.id
    pictures.mkdir(exist_ok=True)
    visitor = Visitor(app, page, dataset, pictures)
    page.set_viewport_size({"width": 1500, "height": 1060})
    app.open(serve(dataset.name))
    page.locator("[data-cy='checkbox-frames.prompts']").click()
    visitor.search(scene.word, scene.phrase)
    visitor.look_at_a_video()
    visitor.open_map()
    chosen = visitor.lasso()
    texts = visitor.review(chosen)
    visitor.export(tmp_path / "exported", set(texts.values()))
