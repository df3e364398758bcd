"""`imagen-pl grow-report`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from imagen_pl.cli.grow_report import StageStart, stages_of
from imagen_pl.cli.main import main
from tests.helpers.runs import Tiny


def test_report_is_self_contained(trained: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grow-report", str(trained.run)]) == 0
    assert re.match(
        r"runs/tiny/report.html: \d+ rows of numbers, [\d,]+ images seen\n", capsys.readouterr().out
    )
    page = (trained.run / "report.html").read_text()
    assert "4 px → 8 px" in page
    assert page.count("data:image/webp;base64,") == len(list((trained.run / "samples").glob("*.png"))[:6])
    for title in ("Losses", "Margin: real above generated", "Norms of the gradients", "Images a second"):
        assert f">{title}</text>" in page
    assert page.count("<svg") == page.count("</svg>") >= 4
    assert not re.search(r"""(src|href)=.(https?:|//)""", page)
    assert "imagen-pl fit --config tiny.yaml" in page


def test_names_are_escaped(trained: Tiny) -> None:
    odd = trained.run.with_name("<b>run")
    trained.run.rename(odd)
    assert main(["grow-report", str(odd), "--out", "page.html"]) == 0
    assert "<h1>&lt;b&gt;run</h1>" in Path("page.html").read_text()


def test_stages_start_where_the_resolution_changes() -> None:
    rows = [
        {"images_seen": 100.0 * k, **({"growth/resolution": r} if r else {})}
        for k, r in enumerate((4, 4, 0, 8, 8))
    ]
    assert stages_of(rows) == [StageStart(0, 4), StageStart(300, 8)]


def test_bad_input_gives_one_line_error(
    trained: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grow-report", "nowhere"]) == 2
    assert "nowhere is no run: it has no metrics.csv" in capsys.readouterr().err
    Path("empty").mkdir()
    Path("empty/metrics.csv").write_text("images_seen,train/d_loss\n")
    assert main(["grow-report", "empty"]) == 2
    assert "holds no numbers yet" in capsys.readouterr().err
    Path("empty/metrics.csv").write_text("images_seen\nmany\n")
    assert main(["grow-report", "empty"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["grow-report", str(trained.run), "--out", "page.png"]) == 2
    assert "--out page.png must be an .html file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["grow-report", str(trained.run)]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
