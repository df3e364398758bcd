"""Models that come with the package, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from imagen_pl import load
from imagen_pl import trained as trained_models
from imagen_pl.cli import main
from imagen_pl.describing import load_captioner
from imagen_pl.errors import UserError
from imagen_pl.text.captioner import Captioner
from imagen_pl.text.captioner_weights import save_weights
from tests.captioners import Pixels
from tests.cli.conftest import Tiny
from tests.cli.test_caption import CAPTIONER
from tests.unit.data_fixtures import noise


@pytest.fixture
def hearts(trained: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release with a captioner, as if it came with the package."""
    folder = tmp_path / "released/hearts"
    load(trained.run, "cpu").save(folder, torch.float16)
    captioner = Captioner(Pixels(), vocab_size=300, max_tokens=8, dim=16, layers=1, heads=2)
    captioner.prepare(lambda: ["a red heart"])
    save_weights(captioner, folder / "captioner", torch.float16)
    described = {"resolution": 8, "captioner": CAPTIONER}
    (folder / "captioner/config.json").write_text(json.dumps(described))
    monkeypatch.setattr(trained_models, "RELEASED", tmp_path / "released")
    return folder


def test_it_is_found_by_its_name_and_draws(hearts: Path) -> None:
    assert main(["sample", "hearts", "a red heart"]) == 0
    assert load("hearts", "cpu").sample("a red heart")[0].tobytes() == (
        load(hearts, "cpu").sample("a red heart")[0].tobytes()
    )


def test_it_captions_if_it_holds_a_captioner(hearts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise(8).save("picture.png")
    assert main(["caption", "hearts", "picture.png"]) == 0
    assert capsys.readouterr().out.startswith("picture.png: ")
    weights = list(load_captioner("hearts", "cpu").captioner.parameters())
    assert {p.dtype for p in weights} == {torch.float32}
    (hearts / "captioner/captioner.safetensors").unlink()
    assert main(["caption", "hearts", "picture.png"]) == 2
    assert "is a release that holds no captioner" in capsys.readouterr().err


def test_what_lies_here_under_its_name_comes_first(hearts: Path) -> None:
    Path("hearts").mkdir()
    with pytest.raises(UserError, match="model hearts: neither a run"):
        load("hearts")


def test_a_wrong_name_is_told_the_right_ones(hearts: Path) -> None:
    with pytest.raises(
        UserError, match=r"there is no such run, checkpoint or release; this package brings hearts"
    ):
        load("harts")
