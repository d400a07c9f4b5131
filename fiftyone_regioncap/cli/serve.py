"""Declares ``regioncap serve``, which serves DAM over HTTP."""

from __future__ import annotations

import os
from pathlib import Path

import click


@click.command()
@click.option("--weights", default="nvidia/DAM-3B", show_default=True)
@click.option("--video", is_flag=True, help="The checkpoint is for videos too.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    *("--rows", "rows"),
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    help="At once.",
)
@click.option("--temperature", type=float, default=0.2, show_default=True)
@click.option("--top-p", type=float, default=0.9, show_default=True)
@click.option(
    "--max-new-tokens", type=click.IntRange(1, 2**16), default=512, show_default=True
)
@click.option("--device", help="Such as cuda or cpu.")
@click.option("--accept-license", is_flag=True, help="Accept the weights' license.")
def serve(
    weights: str,
    video: bool,
    host: str,
    port: int,
    rows: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    device: str | None,
    accept_license: bool,
) -> None:
    """Serves Describe Anything in its authors' dialect and in OpenAI's (/v1).

    Sampling and length are for requests that say nothing of them. Beyond loopback
    clients must send the token in $REGIONCAP_TOKEN.
    """
    from fiftyone_regioncap.captioning.dam.model import DAM
    from fiftyone_regioncap.models.devices import choose_device, choose_dtype
    from fiftyone_regioncap.models.sampling import Sampling
    from fiftyone_regioncap.serving.app import RequestLimits, ServerSettings
    from fiftyone_regioncap.serving.server import check_address
    from fiftyone_regioncap.serving.server import serve as run
    from fiftyone_regioncap.system import assets

    if accept_license:
        assets.accept_license(weights)
    place = choose_device(device)
    settings = ServerSettings(
        model=Path(weights).name,
        video=video,
        token=os.environ.get("REGIONCAP_TOKEN") or None,
        sampling=Sampling(temperature, 50, top_p),
        limits=RequestLimits(max_new_tokens=max_new_tokens),
        rows=rows,
    )
    check_address(settings, host, port)  # before the weights are read
    run(
        DAM.from_pretrained(weights, place, choose_dtype(None, place)),
        settings,
        host=host,
        port=port,
        ready=lambda url: click.echo(f"serving at {url} and {url}/v1"),
    )
