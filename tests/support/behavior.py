"""Records what jobs write, so that two versions of the package can be compared.

``python -m tests.support.behavior OUT.json`` works with the public functions alone, so
the same file runs against an older version: put that one first in ``PYTHONPATH`` and
run the file by its path. Ids, times and folders are left out; everything else that is
in the file is expected to stay the same from one version to the next.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from PIL import Image

SHARED = Path(__file__).resolve().parents[3] / "shared"
CLIPS = Path(os.environ.get("REGIONCAP_CLIPS", SHARED / "clips"))
NAMES = ("car-shadow", "dogs-jump")
FRAMES = 6
CHANGING = rb'"(created|seconds|version|run)": *("[^"]*"|[\d.]+)'
LEFT_OUT = {"id", "_id", "_dataset_id", "_sample_id", "created_at", "last_modified_at"}


def digest(data: bytes) -> str:
    """Returns a short hash of bytes."""
    return hashlib.sha256(data).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Returns a label or document as JSON values, without what differs between runs."""
    if hasattr(value, "to_dict") and not isinstance(value, dict):
        value = value.to_dict()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in sorted(value.items()) if k not in LEFT_OUT}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), digest(value.tobytes())]
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, (str, int, bool, type(None))):
        return value
    return type(value).__name__


def fields(document: Any) -> dict[str, Any]:
    """Returns the fields of a sample or frame that are not FiftyOne's own."""
    names = [n for n in document.field_names if n not in LEFT_OUT]
    own = [n for n in names if n not in ("filepath", "metadata", "frames", "tags")]
    found = {}
    for name in own:
        value = document[name]
        if name.endswith("_origin") and value is not None:
            value = sorted(value)  # objects; the hashes depend on the version
        if value is not None:
            found[name] = plain(value)
    return found


def contents(dataset: Any) -> dict[str, Any]:
    """Reads all that jobs wrote into a dataset."""
    dataset.reload()
    videos = dataset.media_type == "video"
    return {
        "schema": sorted(dataset.get_field_schema(flat=True)),
        "frame schema": sorted(dataset.get_frame_field_schema(flat=True) or {})
        if videos
        else [],
        "runs": sorted(key.rsplit("_", 3)[0] for key in dataset.list_runs()),
        "samples": {
            Path(sample.filepath).parent.name: {
                **fields(sample),
                "metadata": plain(sample.metadata),
                "frames": {str(n): fields(f) for n, f in sample.frames.items()}
                if videos
                else {},
            }
            for sample in dataset
        },
    }


def tree(folder: Path, hide: dict[str, str]) -> dict[str, Any]:
    """Hashes each file of a folder; JSON is compared without ids and paths."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            name = str(path.relative_to(folder))
            for old, new in hide.items():
                data = data.replace(old.encode(), new.encode())
                name = name.replace(old, new)
            data = re.sub(
                rb'"(created|seconds|version|run)": *("[^"]*"|[\d.]+)', b"", data
            )
            found[name] = digest(data)
    return found


def counts(summary: Any) -> dict[str, Any]:
    """Returns the counts of a summary."""
    values = summary.to_dict() if hasattr(summary, "to_dict") else vars(summary)
    return {
        k: v for k, v in values.items() if isinstance(v, int) and k not in ("seconds",)
    }


@contextmanager
def dataset_of(clips: list[Path]) -> Iterator[Any]:
    """The clips with a box of the largest object on frame 1 and on frame 4."""
    import fiftyone as fo

    dataset = fo.Dataset(f"behavior-{uuid4().hex[:8]}")
    for clip in clips:
        sample = fo.Sample(filepath=str(clip / "clip.mp4"))
        for frame in (0, 3):
            mask = np.asarray(Image.open(clip / "masks" / f"{frame:05d}.png"))
            index = int(np.bincount(mask[mask > 0]).argmax())
            rows, columns = np.nonzero(mask == index)
            height, width = mask.shape[:2]
            x, y = columns.min() / width, rows.min() / height
            box = [x, y, columns.max() / width - x, rows.max() / height - y]
            label = fo.Detection(
                label="thing", bounding_box=[float(v) for v in box], index=1
            )
            prompts = fo.Detections(detections=[label])
            sample.frames[frame + 1] = fo.Frame(prompts=prompts)
        dataset.add_sample(sample)
    yield dataset
    dataset.delete()


def record(clips: list[Path], say: Callable[[str], None]) -> dict[str, Any]:
    """Runs the jobs on clips and gives what they wrote."""
    import fiftyone as fo

    import fiftyone_regioncap as regioncap
    from fiftyone_regioncap.exporters import FORMATS

    found: dict[str, Any] = {}
    for propagator in ("flow", "mobilesam"):
        say(propagator)
        with dataset_of(clips) as dataset, tempfile.TemporaryDirectory() as folder:
            made = regioncap.propagate(
                dataset, propagator=propagator, stop=FRAMES, progress=False
            )
            told = regioncap.caption(dataset, captioner="measured", progress=False)
            again = regioncap.caption(dataset, captioner="measured", progress=False)
            found[propagator] = {
                "counts": [counts(made), counts(told), counts(again)],
                "contents": contents(dataset),
            }
            if propagator != "flow":
                continue
            windows = regioncap.caption(
                dataset,
                output="windows",
                captioner="measured",
                window=2,
                summary=True,
                progress=False,
            )
            found["windows"] = [counts(windows), contents(dataset)]
            hide = {
                folder: "OUT",
                **{i: f"ID{n}" for n, i in enumerate(dataset.values("id"))},
            }
            hide[dataset.name] = "NAME"
            exports = {}
            for format in sorted(FORMATS):
                say(f"export {format}")
                try:
                    path = Path(folder) / format
                    regioncap.export(dataset, format, path, progress=False)
                    exports[format] = tree(path, hide)
                except Exception as error:
                    exports[format] = f"{type(error).__name__}: {error}"
            found["exports"] = exports
    say("propose")
    with dataset_of(clips[:1]) as dataset:
        dataset.delete_frame_field("prompts")
        made = regioncap.propose(dataset, propagator="mobilesam", progress=False)
        found["propose"] = [counts(made), contents(dataset)]
    say("images")
    images = fo.Dataset(f"behavior-{uuid4().hex[:8]}")
    for clip in clips:
        mask = np.asarray(Image.open(clip / "masks" / "00000.png"))
        frame = clip / "frames" / "00000.jpg"
        height, width = cv2.imread(str(frame)).shape[:2]
        x, y, w, h = cv2.boundingRect((mask > 0).astype(np.uint8))
        box = [x / width, y / height, w / width, h / height]
        regions = fo.Detections(
            detections=[
                fo.Detection(label="thing", bounding_box=box),
                fo.Detection(bounding_box=[0.1, 0.1, 0.3, 0.3]),
            ]
        )
        images.add_sample(fo.Sample(filepath=str(frame), regions=regions))
    made = regioncap.caption_regions(
        images, "regions", captioner="measured", segmenter=None, progress=False
    )
    found["images"] = [counts(made), contents(images)]
    images.delete()
    return found


def main() -> None:
    """Writes the record, or says how two records differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path, help="A record to compare with.")
    arguments = parser.parse_args()
    try:
        database = importlib.import_module("fiftyone_regioncap.system.database")
    except ImportError:  # an older version
        database = importlib.import_module("fiftyone_regioncap.database")
    database.ensure()
    found = record(
        [CLIPS / name for name in NAMES], lambda text: print(text, file=sys.stderr)
    )
    arguments.out.write_text(json.dumps(found, indent=1, sort_keys=True))
    if arguments.against is not None:
        differences = list(differ(json.loads(arguments.against.read_text()), found))
        print("\n".join(differences) or "no difference")


def differ(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yields the places where two records differ."""
    new = json.loads(json.dumps(new)) if path == "" else new
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from differ(old.get(key), new.get(key), f"{path}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differ(one, other, f"{path}/{number}")
    elif old != new:
        yield f"{path}: {json.dumps(old)[:200]} -> {json.dumps(new)[:200]}"


if __name__ == "__main__":
    main()
