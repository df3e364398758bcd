"""What a verb imports before its first output; it counts modules, not seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

# Slow to import. The last three come with the modeling code of `transformers` and with torch's compiler,
# which every optimizer of `torch.optim` imports.
HEAVY = {
    "torch",
    "lightning",
    "torchmetrics",
    "transformers",
    "timm",
    "torchvision",
    "scipy",
    "sympy",
    "torch._dynamo",
}
OPENING_A_MODEL = {
    "sample": ["sample", "emojii", "a cat"],
    "sheet": ["sheet", "emojii", "brief.txt"],
    "variants": ["variants", "emojii", "cat"],
    "interpolate": ["interpolate", "emojii", "a cat", "a dog"],
    "edit": ["edit", "emojii", "a cat", "--to", "a dog"],
    "evaluate": ["evaluate", "emojii"],
    "export": ["export", "emojii", "--to", "safetensors", "--out", "out"],
    "push": ["push", "emojii", "me/emoji"],
    "caption": ["caption", "emojii", "brief.txt"],
    "demo": ["demo", "emojii"],
}


def _imported(words: list[str], folder: Path) -> tuple[int, str, set[str]]:
    """Exit code, stderr, and the heavy packages that a command imported, in a process of its own."""
    code = (
        "import sys\n"
        "from imagen_pl.cli.main import main\n"
        f"code = main({words!r})\n"
        f"print('imported', *sorted({HEAVY!r} & set(sys.modules)))\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.stdout, done.stderr
    return done.returncode, done.stderr, set(done.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("verb", OPENING_A_MODEL)
def test_a_wrong_model_name_is_reported_before_torch_is_imported(verb: str, tmp_path: Path) -> None:
    if verb == "demo":
        pytest.importorskip("gradio")
    (tmp_path / "brief.txt").write_text("a cat\n")

    code, error, imported = _imported(OPENING_A_MODEL[verb], tmp_path)

    assert code == 2
    assert error == "error: there is no run, checkpoint or release emojii; did you mean emoji?\n"
    assert imported == set()


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    for words in (["--help"], ["sample", "--help"], ["evaluate", "--help"]):
        assert _imported(words, tmp_path)[2] == set(), words


@pytest.mark.parametrize("refine", ["0", "1"])
def test_drawing_with_the_released_model_imports_torch_and_nothing_else_heavy(
    refine: str, tmp_path: Path
) -> None:
    code, error, imported = _imported(
        ["sample", "emoji", "a cupcake, fluent style", "--refine", refine], tmp_path
    )

    assert code == 0, error
    assert imported == {"torch"}


def test_captioning_with_the_model_that_ships_imports_torch_and_nothing_else_heavy(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")

    code, error, imported = _imported(["caption", "emoji", "red.png"], tmp_path)

    assert code == 0, error
    assert imported == {"torch"}


def test_scoring_imports_torch_and_nothing_else_heavy() -> None:
    code = (
        "import sys, imagen_pl.cli.evaluation\n"
        "from imagen_pl.metrics.extractors import EfficientNetLite1\n"
        "EfficientNetLite1().load()\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)

    assert done.stdout.split() == ["torch"], done.stderr
