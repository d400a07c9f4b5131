"""A server for DAM with the request format of its authors' server, and OpenAI's."""

from fiftyone_regioncap.serving.app import ServerSettings, create_app
from fiftyone_regioncap.serving.server import running, serve

__all__ = ["ServerSettings", "create_app", "running", "serve"]
