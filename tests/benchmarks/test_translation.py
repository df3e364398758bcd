"""The benchmark of translation, with an untrained translator, whose answer is the input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import imagen_pl
from benchmarks import translation
from imagen_pl.data.sources.icons import IconSource
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.metrics.extractors import Extractor
from imagen_pl.models.generators.translator import Translator
from imagen_pl.types import Growth
from tests.helpers.fakes import TinyText

pytestmark = pytest.mark.usefixtures("one_thread")
SETS = ["Phosphor", "IconPark"]


class Thumbnails(Extractor):
    """The pixels of 8 x 8 means."""

    name, dim = "thumbnails", 192

    def load(self) -> None:
        """It has no weights."""

    def __call__(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 8).flatten(1)


@pytest.fixture(scope="module")
def model() -> TextToImage:
    torch.manual_seed(0)
    generator = Translator({16: 4, 32: 4, 64: 4}, text_dim=16, style_dim=8, blocks=1)
    source = {"class_path": "IconSource", "init_args": {"sets": SETS, "set_captions": True}}
    return TextToImage(generator, TinyText(), Growth(64), {"data": source, "images_seen": 0})


@pytest.fixture(scope="module")
def icons() -> translation.Icons:
    return translation.read_icons(IconSource(sets=SETS), 64)


def test_no_held_out_icon_looks_like_a_training_icon(icons: translation.Icons) -> None:
    trained = {row.picture for row in icons.rows if row.split == "train"}
    held = [row for row in icons.rows if row.split != "train"]
    assert len(held) > 100
    assert not {row.picture for row in held} & trained
    assert set(icons.domains) == {
        "IconPark, coloured",
        *(f"Phosphor, {kind}" for kind in ("thin", "light", "regular", "bold", "fill", "duotone")),
    }


def test_queries_are_new_subjects_in_two_domains(icons: translation.Icons) -> None:
    queries = translation.make_queries(icons, each=2, seed=0)
    learnt = {row.words for row in icons.rows if row.split == "train"}
    for query in queries:
        source, true = (icons.rows[i] for i in (query.source, query.true))
        assert source.words == true.words
        assert source.words not in learnt
        assert source.split == true.split == "test"
        assert icons.domains[query.source] != icons.domains[query.true]
        assert {icons.domains[i] for i in query.others} == {icons.domains[query.true]}
        assert source.words not in {icons.rows[i].words for i in query.others}
        same = source.set.split()[0] == true.set.split()[0]
        assert query.group == (translation.SAME if same else translation.OTHER)
    assert {query.group for query in queries} == {translation.SAME, translation.OTHER}
    assert translation.make_queries(icons, each=2, seed=1) != queries


def test_a_perfect_answer_is_always_first(icons: translation.Icons) -> None:
    queries = translation.make_queries(icons, each=1, seed=0)
    true = icons.images[[query.true for query in queries]]
    for row in translation.score(icons, queries, {"true": true}, Thumbnails()):
        assert row.top1 == row.top5 == {"pixels": 1.0, "features": 1.0}
        assert all(gap < 1e-3 for gap in row.distance.values())


def test_table_and_files(
    model: TextToImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(imagen_pl, "load", lambda path, device: model)
    monkeypatch.setattr(translation, "EfficientNetLite1", Thumbnails)
    monkeypatch.setattr("sys.argv", ["translation.py", "run", "--icons", "/home/me/icon_sets"])
    monkeypatch.setattr(translation, "IconSource", lambda path, sets: IconSource(sets=sets))

    translation.run(Path("run"), "/home/me/icon_sets", tmp_path / "out/scores.json", each=1, seed=0)

    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 2 * len(translation.ANSWERS)
    text = (tmp_path / "out/scores.json").read_text()
    assert "/home" not in text
    kept = json.loads(text)
    by_name = {(row["answer"], row["group"]): row for row in kept["scores"]}
    for group in (translation.SAME, translation.OTHER):
        same = by_name["input", group]
        for answer in translation.ANSWERS[:2]:  # it has not learnt to change anything
            assert by_name[answer, group]["top5"] == same["top5"]
    assert (tmp_path / "out/scores.png").is_file()
