"""The installed console command, as a user starts it: the verbs that the README's own commands do not run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml
from pyarrow import parquet

from tests.cli.test_caption import captioner_config
from tests.data import test_build_emoji
from tests.helpers.image_files import noise
from tests.helpers.runs import Tiny

COMMAND = str(Path(sys.executable).parent / "imagen-pl")
Console = Callable[..., subprocess.CompletedProcess[str]]
packages = test_build_emoji.packages


@pytest.fixture
def console() -> Console:
    """Runs the command in the test's working folder."""

    def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *map(str, words)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def test_grow_report_command_writes_a_report(trained: Tiny, console: Console) -> None:
    done = console("grow-report", trained.run)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{trained.run}/report.html: ")


def test_fit_captioner_and_caption_commands_work(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, console: Console
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("reader.yaml").write_text(yaml.safe_dump(captioner_config(photos)))
    assert console("fit-captioner", "--config", "reader.yaml").returncode == 0
    Path("bare").mkdir()
    noise(16).save("bare/picture.png")
    done = console("caption", "runs/reader", "bare/picture.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("bare/picture.png: ")
    done = console("data", "captions", "bare", "--captioner", "runs/reader")
    assert done.returncode == 0, done.stderr
    assert Path("bare/picture.txt").is_file() or "1 without a caption" in done.stdout


def test_data_emoji_command_builds_the_data_set(packages: Path, tmp_path: Path, console: Console) -> None:
    out = tmp_path / "emoji.parquet"
    done = console("data", "emoji", "--size", "64", "--out", out, "--packages", packages)
    assert done.returncode == 0, done.stderr
    assert f"{parquet.read_table(out).num_rows} images of 64 px in {out}" in done.stdout


def test_unreachable_hub_gives_one_line_error(trained: Tiny, console: Console) -> None:
    """What is uploaded: test_push.py."""
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none", "HF_HUB_OFFLINE": "0"}
    done = console("push", trained.run, "me/tiny", **nowhere)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: the Hugging Face hub cannot be reached (")


@pytest.mark.slow
def test_demo_is_served_until_ctrl_c(trained: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a proxy is set, which cannot reach this machine."""
    pytest.importorskip("gradio")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    words = [COMMAND, "demo", str(trained.run), "--device", "cpu"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        try:
            address = re.match(r"Open (http://127\.0\.0\.1:\d+)", served.stdout.readline())
            assert address is not None
            with build_opener(ProxyHandler({})).open(address[1], timeout=60) as page:
                assert b"gradio" in page.read()
        finally:
            served.send_signal(signal.SIGINT)
            threading.Timer(60, served.kill).start()  # in case it does not end
        assert served.wait() in (0, 130)
