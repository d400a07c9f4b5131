"""The doctor finds what is there, and says what to do about what is not."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fiftyone_regioncap.cli import doctor
from fiftyone_regioncap.cli.doctor import Finding


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where nothing was downloaded or configured yet."""
    import fiftyone as fo

    monkeypatch.setenv("REGIONCAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("REGIONCAP_WEIGHTS", raising=False)
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    monkeypatch.delenv("FIFTYONE_PRIVATE_DATABASE_PORT", raising=False)
    monkeypatch.setattr(fo.config, "database_uri", None)
    monkeypatch.setattr(doctor.database, "_fiftyone_has_one", lambda: False)


def test_examination_of_this_machine() -> None:
    findings = {finding.name: finding for finding in doctor.examine()}
    # What runs these tests is there.
    for name in ("Python", "torch", "transformers", "fiftyone"):
        assert findings[name].level == "ok"
        assert findings[name].found[0].isdigit()
    assert {"database", "model hub", "ffmpeg", "Chromium"} <= set(findings)
    assert {"mobile_sam.pt", "nvidia/DAM-3B-Video"} <= set(findings)
    # All that is amiss comes with advice.
    for finding in findings.values():
        assert bool(finding.advice) == (finding.level != "ok"), finding


def test_rendered_findings_line_up() -> None:
    text = doctor.render(
        [
            Finding("torch", "2.13.0"),
            Finding("ffmpeg", "none", "note", "install it"),
            Finding("database", "none", "problem", "start it"),
        ]
    )
    assert text.splitlines() == [
        "ok       torch     2.13.0",
        "note     ffmpeg    none",
        "                   -> install it",
        "problem  database  none",
        "                   -> start it",
    ]
    assert doctor.render([]) == ""


def test_broken_installation_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def _torch() -> Iterator[Finding]:
        yield Finding("torch", "2.13.0")
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "_CHECKS", (_torch, doctor._python))
    whole, broken, python = doctor.examine()
    assert whole.ok and python.ok
    assert broken.name == "torch" and not broken.ok
    assert "libcudart.so" in broken.found


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_database_that_is_configured_but_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://127.0.0.1:9")
    finding = only(doctor._database())
    assert finding.level == "problem"
    assert "FIFTYONE_DATABASE_URI" in finding.advice


@pytest.mark.parametrize(
    ("machine_name", "level"), [("x86_64", "ok"), ("aarch64", "problem")]
)
def test_database_that_has_not_been_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine_name: str, level: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine_name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("sys.platform", "linux")
    assert only(doctor._database()).level == level
    assert not (tmp_path / "cache").exists()


def test_weights_that_are_not_what_they_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mobile_sam.pt").write_bytes(b"half")
    (tmp_path / "DAM-3B").mkdir()
    (tmp_path / "DAM-3B" / "config.json").write_text("{}")
    monkeypatch.setenv("REGIONCAP_WEIGHTS", str(tmp_path))
    levels = {finding.name: finding.level for finding in doctor._weights()}
    assert levels["mobile_sam.pt"] == "problem"
    assert levels["nvidia/DAM-3B"] == "ok"
    assert levels["bigbuckbunny.mp4"] == "note"


@pytest.fixture
def web_server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_hub(web_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", web_server)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert only(doctor._hub()).level == "ok"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert only(doctor._hub()).level == "note"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in only(doctor._hub()).found


@pytest.mark.parametrize(
    ("gibibytes", "level"), [(0.5, "problem"), (5, "note"), (50, "ok")]
)
def test_disk(monkeypatch: pytest.MonkeyPatch, gibibytes: float, level: str) -> None:
    monkeypatch.setattr(doctor, "_free_bytes", lambda _: int(gibibytes * (1 << 30)))
    assert [finding.level for finding in doctor._disk()] == [level, level]


def test_optional_programs_are_only_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for check in (doctor._ffmpeg, doctor._browser):
        finding = only(check())
        assert finding.level == "note" and finding.ok
        assert "apt-get install" in finding.advice
