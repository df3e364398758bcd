"""The script that makes the released model and its card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import yaml
from torch import Tensor

from benchmarks import release
from benchmarks.protocol import ReferenceSet
from imagen_pl.inference.model_card import model_card
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.storage.model_paths import RELEASED
from tests.helpers.networks import pairs
from tests.helpers.runs import REPOSITORY
from tests.models.test_image_prior import tiny_prior


def test_card_has_the_scores_under_the_model_s_name() -> None:
    printed = "200 prompts, seed 0\n\n| | style |\n|---|---|\n| imagen_pl/released/emoji | 47% |\n"
    assert release.with_short_name(printed, Path("imagen_pl/released/emoji")) == (
        "200 prompts, seed 0\n\n| | style |\n|---|---|\n| emoji | 47% |"
    )


def test_worst_examples_have_real_images_that_rank_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawings near their own real image rank 0, one that looks like another's ranks last."""
    real = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0], [9.0, 9.0]])
    drawn = torch.tensor([[2.0, 0.1], [0.1, 2.0], [2.0, 0.2], [0.1, -2.0], [-9.0, -9.0]])
    pictures = [SimpleNamespace(style="noto")] * 4 + [SimpleNamespace(style="fluent")]
    reference = SimpleNamespace(features=real, asked=list(range(5)), pictures=pictures)
    monkeypatch.setattr(release, "extract", lambda _, images, output: images)
    # The third looks like the first and is behind all its style; the last is alone in its style.
    assert release.ranks(cast(ReferenceSet, reference), drawn, [0, 1, 2, 3]) == [0, 0, 3, 0]
    assert release.ranks(cast(ReferenceSet, reference), drawn, [4]) == [0]


def write_run(folder: Path, commands: list[str], commit: str, stem: str | None) -> Path:
    folder.mkdir(parents=True)
    starts = [
        {"command": command, "git": {"commit": commit}, "precision": "bf16-mixed"} for command in commands
    ]
    (folder / "run.json").write_text(json.dumps({"starts": starts}))
    (folder / "metrics.csv").write_text("images_seen,train/images_per_second\n0,\n6000,50\n12000,50\n")
    config = {
        "seed_everything": 3,
        "trainer": {"devices": 2, "accelerator": "cpu", "precision": None},
        "model": {"generator": {"init_args": {"init_from": stem}}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_card_has_commands_times_and_commits_of_both_runs(tmp_path: Path) -> None:
    first = ["imagen-pl fit --config a.yaml", "imagen-pl fit --config runs/a/config.yaml --ckpt_path last"]
    write_run(tmp_path / "runs/a", first, "0123456789", None)
    stem = "runs/a/checkpoints/last.ckpt"
    run = write_run(tmp_path / "runs/b", ["imagen-pl fit --config b.yaml"], "98765432", stem)
    about = {
        "machine": {"cores": 2, "cpu": "Some CPU"},
        "torch": "2.15.0",
        "command": "python -m benchmarks.release runs/b --captioner c",
    }
    output = release.made_by(run, about)
    assert release.made_by(run / "checkpoints/last.ckpt", about) == output
    lines = output.splitlines()
    assert lines[1:4] == [*first, "imagen-pl fit --config b.yaml"]
    assert lines[4].startswith("imagen-pl fit-captioner")
    assert "a took 4 minutes, 12,000 images, 50 a second on average" in output
    assert lines[5] == "python -m benchmarks.release runs/b --captioner c"
    assert "commit 0123456); b took 4 minutes" in output
    assert "On 2 cores of an Some CPU" in output
    assert output.count("(2 x cpu, bf16-mixed, seed 3, commit ") == 2


def test_card_needs_the_run_of_init_from(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs/b", ["imagen-pl fit --config b.yaml"], "98765432", "runs/a")
    with pytest.raises(SystemExit, match="a is no run's folder"):
        release.with_stems(run)


def test_card_tells_how_the_shipped_model_was_made_that_a_run_started_from(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs/b", ["imagen-pl fit --config b.yaml"], "98765432", "emoji")
    about = {"machine": {"cores": 2, "cpu": "Some CPU"}, "torch": "2.15.0", "command": "the last command"}
    output = release.made_by(run, about)
    card = (release.RELEASED / "emoji/README.md").read_text()
    before, _, after = output.partition("That was the model `emoji` of an earlier commit. It went on with:")
    assert before.strip() in card
    assert "imagen-pl fit --config configs/experiment/emoji64.yaml" in before
    assert before.count("imagen-pl fit-captioner") == 1
    assert after.split("```")[1].split("\n")[1:3] == ["imagen-pl fit --config b.yaml", "the last command"]


def test_prior_without_components_is_fitted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the same images; with others the weights differ, which is an error, and the prior is unchanged."""
    pooled, images = pairs()
    prior, other = tiny_prior(), tiny_prior()
    prior.fit([(pooled, images)])
    kept = {name: value.clone() for name, value in prior.state_dict().items()}

    def data(shown: Tensor) -> SimpleNamespace:
        batch = SimpleNamespace(captions=pooled, images=shown)
        return SimpleNamespace(setup=lambda _: None, pairs=SimpleNamespace(batches=lambda *_, **__: [batch]))

    text = cast(TextEncoder, SimpleNamespace(encode=lambda captions, _: SimpleNamespace(pooled=captions)))
    old = {name: value for name, value in kept.items() if name not in ("centre", "directions")}
    prior.load_state_dict(old | {"centre": torch.zeros(0), "directions": torch.zeros(0, 4)})
    assert not prior.has_components
    monkeypatch.setattr(release, "CaptionedImages", lambda *_, **__: data(255 - images.flip(0)))
    with pytest.raises(SystemExit, match="the prior differs now"):
        release.complete(prior, text)
    assert not prior.has_components
    monkeypatch.setattr(release, "CaptionedImages", lambda *_, **__: data(images))
    release.complete(prior, text)
    found = prior.state_dict()
    for name, value in kept.items():
        torch.testing.assert_close(found[name], value)
    other.fit([(pooled, images.flip(0))])
    release.complete(other, text)  # a prior that has components is not fitted again


def test_card_has_the_scores_of_refined_images(tmp_path: Path) -> None:
    score = {"fd": 12.345, "kd": 0.00567, "test_retrieval": {"top1": 0.25, "top5": 0.5}}
    found = {"scores": [score], "captions": {"train": 900, "test": 300}, "reals": 4107}
    (tmp_path / "refined.json").write_text(json.dumps(found))
    output = release.refinement_note(tmp_path / "refined.json")
    assert "With 1,200 captions of `benchmarks/quality.py`" in output
    assert "a Fréchet distance of 12.3 and a kernel distance of 0.0057 to 4,107 real images" in output
    assert "for 300 test subjects the right one is among the first five of 100 in 50.0% (25.0%" in output


def test_too_large_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "load", lambda *_: None)
    monkeypatch.setattr(release, "with_stems", lambda _: [])
    monkeypatch.setattr(
        release,
        "write_weights",
        lambda _, __, out: (out / "model.safetensors").write_bytes(b"0" * 51_000_000),
    )
    words = ["release.py", "run", "--captioner", "captioner", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="has 51 MB of weights: 50 at most may ship"):
        release.main()


def test_the_shipped_card_is_what_the_code_writes_from_the_kept_scores() -> None:
    """Except the commands of its training and two tables, which are known from the card alone."""
    results = REPOSITORY / "benchmarks/results"
    card = (RELEASED / "emoji/README.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^## (.*?)\n\n(.*?)(?=\n\n## |\Z)", card, re.MULTILINE | re.DOTALL))
    further = release.sections(
        found["How it was made"],
        release.refinement_note(results / "protocol/emoji64_refined.json"),
        found["Which words it understands"].split("\n\n`benchmarks/words.py`")[0],
        found["The captioner"].split("\n\n", 1)[1],
    )
    evaluations = [
        json.loads((results / f"emoji64/{split}.json").read_text(encoding="utf-8"))
        for split in release.SPLITS
    ]
    description = json.loads((RELEASED / "emoji/config.json").read_text(encoding="utf-8"))
    again = model_card("emoji", description, evaluations=evaluations, samples="samples.png", further=further)
    assert card == again
