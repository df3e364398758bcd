"""`imagen-pl demo --export-space`: a folder whose app.py starts and answers."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import pytest
from huggingface_hub import SpaceCard

import imagen_pl
from imagen_pl import load
from imagen_pl.cli.main import main
from tests.helpers.commands import one_line_error
from tests.helpers.runs import REPOSITORY, Tiny


def words_of(app: Path) -> list[str]:
    """What app.py passes to `imagen-pl demo`."""
    (found,) = re.findall(r"^words = (\[.*\])$", app.read_text(), re.MULTILINE)
    words: list[str] = json.loads(found.replace("'", '"'))
    return words


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port: int = opened.getsockname()[1]
    return port


def test_a_run_is_copied_and_its_app_answers(
    trained: Tiny, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    words = ["demo", str(trained.run), "--examples", "a red heart", "--upscaler", "none"]
    assert main([*words, "--export-space", "space"]) == 0
    listed = (
        ".dockerignore, .gitattributes, Dockerfile, README.md, app.py, model/config.json, "
        "model/model.safetensors, requirements.txt"
    )
    assert f"space: {listed}" in capsys.readouterr().out
    for file in Path("space").rglob("*"):  # no path of this machine, and no private caption
        if file.suffix not in ("", ".safetensors"):
            assert str(photos) not in file.read_text()
    assert json.loads(Path("space/model/config.json").read_text())["captions"] == []
    assert load("space/model").resolution == 8

    port = free_port()
    with (
        Path("app.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "space/app.py"],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "GRADIO_SERVER_PORT": str(port)},
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as running,
    ):
        try:
            page = opened(f"http://127.0.0.1:{port}/config", running)
        finally:
            running.terminate()
    assert page is not None, Path("app.log").read_text()
    config = json.loads(page)
    assert "draw" in [each["api_name"] for each in config["dependencies"]]
    assert "a red heart" in page


def opened(address: str, running: subprocess.Popen[bytes]) -> str | None:
    """The answer of a server that is starting; None if it ends or takes more than a minute."""
    opener = build_opener(ProxyHandler({}))
    for _ in range(300):
        if running.poll() is not None:
            return None
        try:
            with opener.open(address, timeout=10) as answer:
                return str(answer.read().decode())
        except (URLError, ConnectionError):
            time.sleep(0.2)
    return None


def test_front_matter_requirements_and_dockerfile(trained: Tiny, hub: Path) -> None:
    assert main(["push", str(trained.run), "me/tiny"]) == 0
    assert main(["demo", "me/tiny", "--export-space", "space"]) == 0
    assert not Path("space/model").exists()  # the app opens it from the hub
    assert words_of(Path("space/app.py")) == ["me/tiny"]
    data = SpaceCard.load("space/README.md").data
    assert (data.title, data.sdk, data.app_file, data.models) == ("tiny", "gradio", "app.py", ["me/tiny"])
    requirements = Path("space/requirements.txt").read_text().splitlines()
    assert f"imagen_pl[demo,svg]=={imagen_pl.__version__}" in requirements
    docker = Path("space/Dockerfile").read_text()
    lines = [line.split(maxsplit=1) for line in docker.splitlines() if not line.startswith("#")]
    assert [instruction for instruction, _ in lines] == [
        "FROM", "RUN", "RUN", "WORKDIR", "COPY", "RUN", "COPY", "USER", "ENV", "EXPOSE", "CMD",
    ]  # fmt: skip
    assert ["CMD", '["python", "app.py"]'] in lines
    assert "GRADIO_SERVER_NAME=0.0.0.0 GRADIO_SERVER_PORT=7860" in docker
    assert ["EXPOSE", "7860"] in lines
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert ["FROM", f"python:{python}-slim"] in lines
    compile(Path("space/app.py").read_text(), "app.py", "exec")


def test_models_that_ship_are_named_and_an_upsampler_of_one_s_own_is_copied(
    trained: Tiny, tmp_path: Path
) -> None:
    assert main(["demo", "icons", "--export-space", "named"]) == 0
    assert words_of(Path("named/app.py")) == ["icons"]
    own = load("upsampler").save("runs/larger")
    assert main(["demo", str(trained.run), "--upscaler", str(own), "--export-space", "copied"]) == 0
    assert words_of(Path("copied/app.py")) == ["model", "--upscaler", "./upsampler"]
    assert Path("copied/upsampler/model.safetensors").is_file()


def test_bad_input_gives_one_line(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["demo", str(trained.run), "--export-space"]
    error = one_line_error([*words, "runs"], capsys)
    assert "--export-space runs exists and is not an empty folder: name a new one" in error
    error = one_line_error([*words, "space", "--captioner", "emoji"], capsys)
    assert "--export-space copies no captioner: leave --captioner out" in error
    assert not Path("space").exists()
