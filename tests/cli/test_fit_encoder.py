"""`imagen-pl fit-encoder`, and `project` and `edit` with its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.inference.style_encoder_fit import StyleEncoderFit
from tests.helpers.commands import one_line_error
from tests.helpers.runs import Tiny

HEART = "a red heart"


def test_an_encoder_is_trained_and_used(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(trained.run)
    load(run).sample(HEART, refine=0)[0].save("own.png")
    Path("prompts.txt").write_text(f"{HEART}\na cat\n")

    assert main(["fit-encoder", run, "--kimg", "0.032", "--prompts", "prompts.txt"]) == 0
    assert "encoder.safetensors: trained on 32 pictures; 1 - cosine" in capsys.readouterr().out
    used = ["own.png", "--prompt", HEART, "--encoder", "encoder.safetensors"]
    assert main(["project", run, *used, "--steps", "0"]) == 0
    assert "own.png: " in capsys.readouterr().out
    edit = ["edit", run, HEART, "--to", "a cat", "--image", "own.png", "--encoder", "encoder.safetensors"]
    assert main([*edit, "--steps", "0"]) == 0
    with Image.open("edit.png") as sheet:
        assert sheet.width == 6 + 3 * 102


def test_ctrl_c_keeps_what_was_learnt(
    trained: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_step = StyleEncoderFit.step

    def step(self: StyleEncoderFit, number: int) -> dict[str, float]:
        if number == 2:
            raise KeyboardInterrupt
        return whole_step(self, number)

    monkeypatch.setattr(StyleEncoderFit, "step", step)
    assert main(["fit-encoder", str(trained.run), "--kimg", "0.16"]) == 0
    assert "trained on 32 pictures (stopped; 160 were planned)" in capsys.readouterr().out
    assert Path("encoder.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fit-encoder", "RUN", "--kimg", "0"], "--kimg 0 must be more than 0"),
        (["fit-encoder", "RUN", "--out", "a.pt"], "--out a.pt must be a .safetensors file"),
        (["fit-encoder", "RUN", "--out", "other.safetensors"], "other.safetensors exists and is no encoder"),
        (
            ["fit-encoder", "RUN", "--out", "folder.safetensors"],
            "folder.safetensors exists and is no encoder",
        ),
        (["project", "RUN", "own.png", "--prompt", HEART, "--steps", "0"], "--steps 0 must be 1 to 5000"),
        (
            [
                *["project", "RUN", "own.png", "--prompt", HEART, "--encoder", "a.safetensors"],
                *["--steps", "0", "--film", "a.gif"],
            ],
            "--film shows the search: leave it out with --steps 0",
        ),
        (
            ["project", "RUN", "own.png", "--prompt", HEART, "--encoder", "a.safetensors"],
            "encoder a.safetensors: there is no such file",
        ),
        (
            ["project", "RUN", "own.png", "--prompt", HEART, "--encoder", "a.safetensors", "--space", "w"],
            "--encoder finds a style for each resolution: leave out --space w",
        ),
    ],
)
def test_bad_input_gives_one_line_error(
    words: list[str], said: str, trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save("own.png")
    Path("other.safetensors").write_bytes(b"a model")
    Path("folder.safetensors").mkdir()
    words = [str(trained.run) if word == "RUN" else word for word in words]
    assert said in one_line_error(words, capsys)
