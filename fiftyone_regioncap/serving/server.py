"""Serves the application on a socket."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config

from fiftyone_regioncap.captioning.dam.model import DAM
from fiftyone_regioncap.core.errors import BackendError
from fiftyone_regioncap.models.endpoints import is_loopback
from fiftyone_regioncap.serving.app import ServerSettings, create_app

logger = logging.getLogger(__name__)

_TOKEN = re.compile(r"[!-~]+")


def serve(
    dam: DAM,
    settings: ServerSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until the process is told to stop (Ctrl-C, SIGTERM).

    Args:
        dam: Loaded DAM model.
        settings: Settings of the server.
        host: Address to listen on; beyond loopback only with a token in the settings.
        port: Port to listen on; 0 for any free one.
        ready: Called with the server's address once it listens.

    Raises:
        BackendError: When others could reach the server without a token, or the
            address cannot be used.
    """
    url, config = _listen(settings, host, port)
    app = create_app(dam, settings)
    ready(url)
    asyncio.run(hypercorn_serve(app, config))  # type: ignore[arg-type]


@contextmanager
def running(
    dam: DAM, settings: ServerSettings, *, host: str = "127.0.0.1", port: int = 0
) -> Iterator[str]:
    """Serves in a thread while the context lasts.

    Args:
        dam: Loaded DAM model.
        settings: Settings of the server.
        host: Address to listen on, as for :func:`serve`.
        port: Port to listen on, as for :func:`serve`.

    Yields:
        The server's address, such as ``http://127.0.0.1:49152``.
    """
    stop = threading.Event()

    async def stopped() -> None:
        while not stop.is_set():
            await asyncio.sleep(0.05)

    url, config = _listen(settings, host, port)
    app = create_app(dam, settings)

    def run() -> None:
        work = hypercorn_serve(
            app,  # type: ignore[arg-type]
            config,
            shutdown_trigger=stopped,
        )
        asyncio.run(work)

    thread = threading.Thread(target=run, name="regioncap-server", daemon=True)
    thread.start()
    try:
        yield url
    finally:
        stop.set()
        thread.join()


def check_address(settings: ServerSettings, host: str, port: int) -> None:
    """Checks that the server can listen on an address, without listening on it.

    Args:
        settings: Settings of the server.
        host: Address to listen on, as for :func:`serve`.
        port: Port to listen on, as for :func:`serve`.

    Raises:
        BackendError: When it can't; see :func:`serve`.
    """
    _open_socket(settings, host, port).close()


def _listen(settings: ServerSettings, host: str, port: int) -> tuple[str, Config]:
    """Opens the socket, so that the port is known; Hypercorn closes it."""
    listener = _open_socket(settings, host, port)
    name, number = listener.getsockname()[:2]
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = logger
    config.graceful_timeout = 1.0
    return f"http://{f'[{name}]' if ':' in name else name}:{number}", config


def _open_socket(settings: ServerSettings, host: str, port: int) -> socket.socket:
    if settings.token is None and not is_loopback(host):
        raise BackendError(
            f"{host} can be reached from other machines: set a token ($REGIONCAP_TOKEN "
            "for regioncap serve), or listen on 127.0.0.1"
        )
    if settings.token is not None and not _TOKEN.fullmatch(settings.token):
        raise BackendError(
            "the token has blanks or other characters that clients can't send in a "
            "header; make one of letters, digits and signs of ASCII"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host.strip("[]"), port), family=family)
    except (OSError, OverflowError, ValueError) as error:
        raise BackendError(f"cannot listen on {host}:{port}: {error}") from error
