"""The program of docs/python.md runs unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]


def test_documented_program_trains_grows_and_draws(photos: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "docs/python.py"), str(photos), "32"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "python.png") as picture:
        assert picture.size == (16, 16)


def test_page_names_the_program_and_its_classes() -> None:
    page, program = (ROOT / "docs/python.md").read_text(), (ROOT / "docs/python.py").read_text()
    assert "docs/python.py" in page
    for name in ("ProgressiveGrowing", "RunLength", "CaptionedImages", "FolderSource", "TextToImageGAN"):
        assert name in page
        assert name in program
