"""benchmarks/icon_judge.py: the judge of words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import icon_judge
from benchmarks.icon_judge import FOLDER, SIDE, IconJudge, augment, one_word_apart, train
from imagen_pl.data.sources.icons import IconRow, IconSource
from imagen_pl.data.transforms import decode

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icon_judge, "BATCH", 24)


def bars() -> tuple[list[IconRow], Tensor]:
    """A black bar at one of four sides, named after it."""
    rows, images = [], []
    for number in range(48):
        side = number % 4
        picture = torch.full((3, SIDE, SIDE), 255, dtype=torch.uint8)
        width = 12 + number // 4
        turned = torch.rot90(picture, side, (1, 2))
        turned[:, 4 : 4 + width] = 0
        name = f"bar {('top', 'right', 'bottom', 'left')[side]}"
        rows.append(IconRow(name, "Set", "outline", "train", name, bytes([number])))
        images.append(torch.rot90(turned, -side, (1, 2)))
    return rows, torch.stack(images)


def test_names_that_differ_in_one_word() -> None:
    near = one_word_apart(["bell", "bell off", "bell ring", "arrow left", "arrow right up", "left arrow"])

    assert near["bell off"] == ["bell", "bell ring"]
    assert near["bell"] == ["bell off", "bell ring"]
    assert near.get("arrow left", []) == []  # "left arrow" differs in two places


def test_judge_learns_which_name_a_picture_has() -> None:
    rows, images = bars()
    torch.manual_seed(0)
    judge = IconJudge()

    train(judge, rows, images, steps=40, seed=0)

    names = sorted({row.words for row in rows})
    found = (judge.look(images) @ judge.read(names).T).argmax(1)
    right = sum(names[k] == row.words for k, row in zip(found.tolist(), rows, strict=True))
    assert right / len(rows) > 0.9


def test_augmented_pictures_are_the_same_pictures_elsewhere() -> None:
    _, images = bars()
    given = images.float() / 127.5 - 1

    spoilt = augment(given, torch.Generator().manual_seed(0))

    assert spoilt.shape == given.shape
    assert not torch.equal(spoilt, given)
    corner = spoilt[:, :, -3:, -3:]  # white comes in from outside
    assert (corner.mean((1, 2, 3)) > 0.5).float().mean() > 0.5


def test_saved_judge_reads_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = IconJudge().eval()
    save_file(
        {k: v.half().contiguous() for k, v in judge.state_dict().items()}, tmp_path / "judge.safetensors"
    )

    again = IconJudge.load(tmp_path)

    _, images = bars()
    torch.testing.assert_close(again.look(images), judge.look(images), atol=5e-3, rtol=0)
    torch.testing.assert_close(again.read(["bell"]), judge.read(["bell"]), atol=5e-3, rtol=0)


def test_shipped_judge_names_real_icons_as_its_figures_say() -> None:
    tested = json.loads((FOLDER / "judge.json").read_text())["tests"]
    unseen = [row for row in IconSource().icon_rows() if icon_judge.held_out(row)][::25]
    judge = IconJudge.load()
    images = torch.stack([decode(row.image, SIDE) for row in unseen])

    names = sorted({row.words for row in unseen})
    similarity = judge.look(images) @ judge.read(names).T
    own = torch.tensor([names.index(row.words) for row in unseen])
    top5 = (similarity.topk(5).indices == own[:, None]).any(1).float().mean()

    assert tested["64 px"]["top5"] > 0.85
    assert top5 > tested["64 px"]["top5"] - 0.12  # more names than the hundred of its figures
    assert tested["64 px, names shuffled"]["top5"] < 0.1
    assert tested["blurred (sigma 3 px)"]["top5"] < tested["64 px"]["top5"]
