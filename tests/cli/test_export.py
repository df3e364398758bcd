"""`imagen-pl export`: files with which other programs draw the same pictures."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.inference import export as exporting
from tests.helpers.runs import Tiny


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_code_in_the_exported_readme_draws(
    trained: Tiny, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code in the export's README runs unchanged, without imagen_pl."""
    assert main(["export", str(trained.run), "--to", kind, "--out", "out"]) == 0
    output = capsys.readouterr().out
    assert "these files draw without refinement" in output
    found = re.search(r"images differ by (\S+) at most", output)
    assert found is not None
    assert float(found[1]) < 1e-4
    ending = "onnx" if kind == "onnx" else "pt2"
    assert f"config.json, generator.{ending}, text_encoder.{ending}, tokenizer" in output
    (code,) = re.findall(r"```python\n(.*?)```", Path("out/README.md").read_text(), re.DOTALL)
    blocked = "import sys; sys.modules['imagen_pl'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code], cwd="out", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with Image.open("out/heart.png") as picture:
        assert picture.size == (8, 8)


def test_onnx_draws_what_sample_draws_for_any_number_of_captions(trained: Tiny) -> None:
    assert main(["export", str(trained.run), "--to", "onnx", "--out", "out"]) == 0
    model = load(trained.run, device="cpu")
    reader, drawer = (exporting._open_onnx(Path(f"out/{n}.onnx")) for n in ("text_encoder", "generator"))
    for count in (1, 2, 7):
        captions = ["a red heart", "a cat, fluent style", "x"][:count] + ["a cat"] * (count - 3)
        z = torch.randn(count, 8)
        text = model.text_encoder.encode(captions)
        (images,) = drawer(z, *reader(*model.text_encoder.tokenize(captions)))  # type: ignore[attr-defined]
        expected = model.generator(z, text, model.growth).clamp(-1, 1)
        torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


def test_half_precision_is_half_as_large_and_nearly_equal(
    trained: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained.run), "--to", "safetensors", "--out", "whole"]) == 0
    assert "images differ by 0.0e+00 at most" in capsys.readouterr().out
    assert main(["export", str(trained.run), "--to", "safetensors", "--half", "--out", "half"]) == 0
    whole, half = (Path(name, "model.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.7 * whole
    assert load("half").resolution == 8


def test_differing_export_is_reported(
    trained: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = exporting._open_torch
    monkeypatch.setattr(
        exporting,
        "_open_torch",
        lambda file: plain(file) if "text" in file.name else lambda *x: plain(file)(*x) + 0.1,
    )
    assert main(["export", str(trained.run), "--to", "torch-export", "--out", "out"]) == 2
    assert "what was written draws otherwise: images differ by 1.0e-01" in capsys.readouterr().err


def test_bad_input_gives_one_line_error(
    trained: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(trained.run), "--to"]
    Path("full").mkdir()
    Path("full/file").touch()
    assert main([*words, "onnx", "--out", "full"]) == 2
    assert "--out full is not empty: name another folder" in capsys.readouterr().err
    assert main([*words, "onnx", "--half", "--out", "new"]) == 2
    assert "--half goes with --to safetensors alone" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([*words, "onnx", "--out", "new"]) == 2
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err
    assert not Path("new").exists() or not any(Path("new").iterdir())
