"""Says what was found on this machine, and what to do about what is missing.

Looks only: it starts no database, downloads nothing, and takes a few seconds.
"""

from __future__ import annotations

import platform
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from fiftyone_regioncap.core.errors import RegionCapError
from fiftyone_regioncap.system import assets, database

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_HUB_SECONDS = 3.0
_TOO_LITTLE = 1 << 30
_LITTLE = 10 << 30


@dataclass(frozen=True)
class Finding:
    """Result of one check of the machine.

    Attributes:
        name: Name of what was checked.
        found: Short description of what was found.
        level: ``ok``; ``note`` where something useful is missing that the main job does
            without; ``problem`` where the main job fails.
        advice: What the user should do; empty where there is nothing to do.
    """

    name: str
    found: str
    level: Literal["ok", "note", "problem"] = "ok"
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Whether the main job runs in spite of it."""
        return self.level != "problem"


def examine() -> list[Finding]:
    """Checks all that the main job, the App and the large models need.

    Returns:
        Findings, the foundations first. Never raises: what breaks while it is looked
        at is a finding too.
    """
    return [finding for check in _CHECKS for finding in _guarded(check)]


def render(findings: Sequence[Finding]) -> str:
    """Findings as text for people: a line each, and its advice below it.

    Args:
        findings: Findings, as :func:`examine` returns them.

    Returns:
        Lines; the first column is ``ok``, ``note`` or ``problem``.
    """
    names = max((len(finding.name) for finding in findings), default=0)
    levels = len("problem")
    lines = []
    for finding in findings:
        lines.append(
            f"{finding.level:{levels}}  {finding.name:{names}}  {finding.found}"
        )
        if finding.advice:
            lines.append(f"{'':{levels}}  {'':{names}}  -> {finding.advice}")
    return "\n".join(lines)


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # a broken installation raises anything
        name = check.__name__.strip("_").replace("_", " ")
        yield Finding(
            name,
            f"{type(error).__name__}: {error}",
            "problem",
            "" if isinstance(error, RegionCapError) else "reinstall it",
        )


def _python() -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} at {sys.executable}")


def _torch() -> Iterator[Finding]:
    import torch

    from fiftyone_regioncap.models.devices import GIB, gpu_fault, gpus

    yield Finding("torch", torch.__version__)
    cards = gpus()
    for name, card in cards.items():
        assert card.free is not None
        found = f"{card}, {card.free / GIB:.1f} free"
        if not card.bfloat16:
            yield Finding(
                name,
                f"{found}; it does not compute in bfloat16",
                "note",
                "models run in float32, or float16 where they have it (dtype)",
            )
        elif card.free < card.memory * GIB / 2:
            advice = "other programs hold the rest; nvidia-smi lists them"
            yield Finding(name, found, "note", advice)
        else:
            yield Finding(name, found)
    if len({round(card.memory) for card in cards.values()}) > 1:
        yield Finding(
            "GPUs",
            "of different sizes; models take the largest, workers one each",
            "note",
            "name another with --device",
        )
    fault = gpu_fault()
    if fault is not None and shutil.which("nvidia-smi") is None:
        yield Finding("CUDA", "no NVIDIA GPU; models run on the CPU")
    elif fault is not None:
        yield Finding("CUDA", fault.found, "note", fault.advice)


def _plan() -> Iterator[Finding]:
    """What the main job would choose on a GPU; on the CPU there is nothing to plan."""
    from fiftyone_regioncap.models.devices import gpus

    if not gpus():
        return
    from fiftyone_regioncap.jobs.options import PlanOptions
    from fiftyone_regioncap.jobs.planning import plan

    found = plan(PlanOptions())
    for one in found.models:
        if one.footprint is None:
            yield Finding(one.role, one.name)
            continue
        text = (
            f"{one.name} on {found.device}: {one.dtype}, {one.footprint.image_size} "
            f"pixels, {one.footprint.row_name} at once: {one.rows}"
        )
        if found.ok:
            yield Finding(one.role, text)
        else:
            yield Finding(one.role, text, "note", " ".join(found.notes))


def _packages() -> Iterator[Finding]:
    for name in ("transformers", "fiftyone"):
        try:
            yield Finding(name, version(name))
        except PackageNotFoundError:
            yield Finding(name, "not installed", "problem", f"pip install {name}")


def _database() -> Iterator[Finding]:
    server = database.which()
    if server.kind == "fiftyone":
        yield Finding("database", "FiftyOne's own mongod")
    elif server.kind == "configured":
        if server.uri and database.reachable(server.uri):
            yield Finding("database", "configured, and it answers")
        else:
            yield Finding(
                "database",
                "configured, but it does not answer",
                "problem",
                "start it, or unset FIFTYONE_DATABASE_URI (database_uri in FiftyOne's "
                "config.json) to get one of your own",
            )
    elif server.uri:
        yield Finding("database", f"private mongod, running at {server.uri}")
    else:
        obstacle = database.obstacle()
        if obstacle is None:
            yield Finding("database", "private mongod, starts when it is needed")
        else:
            yield Finding("database", "none", "problem", obstacle)


def _ffmpeg() -> Iterator[Finding]:
    absent = [tool for tool in ("ffmpeg", "ffprobe") if shutil.which(tool) is None]
    if not absent:
        yield Finding("ffmpeg", str(shutil.which("ffmpeg")))
    else:
        yield Finding(
            "ffmpeg",
            f"no {' and no '.join(absent)}",
            "note",
            "only FiftyOne's own to_frames(sample_frames=True) and compute_metadata() "
            "on videos need it: apt-get install ffmpeg",
        )


def _weights() -> Iterator[Finding]:
    for asset in assets.ASSETS:
        try:
            found = assets.find(asset.name)
        except RegionCapError as error:
            yield Finding(asset.name, "not what it should be", "problem", str(error))
            continue
        if found is not None:
            yield Finding(asset.name, str(found))
            continue
        advice = "comes with its first use"
        if isinstance(asset.source, assets.HubRepo):
            advice += ", from the model hub"
        if not assets.license_accepted(asset.name):
            advice += f", once its license is accepted ({asset.license.notice})"
        yield Finding(
            asset.name,
            f"not downloaded ({asset.readable_size}, {asset.license.id})",
            "note",
            advice,
        )


def _hub() -> Iterator[Finding]:
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        yield Finding("model hub", "HF_HUB_OFFLINE is set", "note", "unset it")
        return
    try:
        request = urllib.request.Request(ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=_HUB_SECONDS).close()
    except OSError as error:
        yield Finding(
            "model hub",
            f"{ENDPOINT} is out of reach ({getattr(error, 'reason', error)})",
            "note",
            "SAM 2 and DAM then need their folders in $REGIONCAP_WEIGHTS; the "
            "embedded defaults don't need it",
        )
    else:
        yield Finding("model hub", f"{ENDPOINT} answers")


def _disk() -> Iterator[Finding]:
    for purpose, folder in (
        ("downloads", assets.cache_dir()),
        ("database", assets.data_dir()),
    ):
        free = _free_bytes(folder)
        found = f"{free / (1 << 30):.1f} GiB free in {folder}"
        name = f"disk for {purpose}"
        if free < _TOO_LITTLE:
            advice = "free some space, or set REGIONCAP_CACHE to another folder"
            yield Finding(name, found, "problem", advice)
        elif free < _LITTLE:
            advice = "enough for the embedded defaults, not for DAM's weights"
            yield Finding(name, found, "note", advice)
        else:
            yield Finding(name, found)


def _free_bytes(folder: Path) -> int:
    """Returns the free bytes of the disk where a folder is or would be made."""
    candidates = (folder.absolute(), *folder.absolute().parents)
    return shutil.disk_usage(next(path for path in candidates if path.exists())).free


def _browser() -> Iterator[Finding]:
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path:
        yield Finding("Chromium", path)
    else:
        yield Finding(
            "Chromium",
            "none",
            "note",
            "only the tests of the App need it: apt-get install chromium",
        )


_CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _torch,
    _plan,
    _packages,
    _database,
    _weights,
    _hub,
    _disk,
    _ffmpeg,
    _browser,
)
