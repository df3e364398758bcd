"""The documentation: it builds, its files exist, its examples run, and no class is left out."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from imagen_pl.cli.main import main
from imagen_pl.cli.new import TEMPLATE
from imagen_pl.data.sources.base import Source, StreamSource
from imagen_pl.losses.adversarial import AdversarialLoss
from imagen_pl.losses.base import LossTerm
from imagen_pl.losses.gradient_penalties import Penalty
from imagen_pl.metrics.base import ImageMetric
from imagen_pl.metrics.extractors import Extractor
from imagen_pl.metrics.feature_scores import FeatureScore
from imagen_pl.models.augment import Augment
from imagen_pl.models.autoencoders.base import Autoencoder
from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.pretrained.backbones import Backbone
from imagen_pl.models.pretrained.dual_encoders import DualEncoder
from imagen_pl.models.text.encoder import TextEncoder
from imagen_pl.schedules import Schedule
from imagen_pl.training.class_paths import import_all_parts
from tests.helpers.runs import Tiny

ROOT = Path(__file__).parents[2]
HISTORY = ROOT / "docs/history.md"  # names files as they were at its commits
PAGES = sorted({*(ROOT / "docs").rglob("*.md")} - {HISTORY})
SETTINGS = sorted((ROOT / "docs/settings").glob("*.md"))
EXAMPLES = dict(
    re.findall(
        r'^```\w+ title="([\w.]+)"\n(.*?)^```',
        (ROOT / "docs/extending.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)
FAMILIES = (
    AdversarialLoss, Augment, Autoencoder, Backbone, Discriminator, DualEncoder, Extractor, FeatureScore,
    Generator, ImageMetric, Penalty, Source, StreamSource, LossTerm, TextEncoder,
)  # fmt: skip


TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.stem)
def test_files_and_classes_that_pages_name_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"\b(?:configs|benchmarks|notebooks|docs|imagen_pl)/[\w/.-]+\.\w+", text):
        assert (ROOT / name).is_file() or (TEMPLATE / name).is_file(), name
    for name in re.findall(r"\bimagen_pl(?:\.\w+)+", text):
        assert resolve(name) is not None, name


def resolve(name: str) -> object:
    """The module, class or function of a dotted name; None if there is none."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.stem)
def test_long_commands_are_wrapped(page: Path) -> None:
    blocks = re.findall(r"^```([^\n]*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for kind, block in blocks if not kind for line in block.splitlines()]
    width = 84 if page in PAGES else 110  # what the site shows without scrolling
    assert [line for line in lines if len(line) > width] == []


@pytest.mark.parametrize(
    "name", ["commands", "extending", "faq", "method", "planning", "recipes", "tuning", "your-images"]
)
def test_headings_are_questions(name: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / f"docs/{name}.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^(##+) (.*)", text, re.MULTILINE)
    # A heading directly above a deeper one names a group of questions.
    groups = [len(next_[0]) > len(this[0]) for this, next_ in pairwise(headings)]
    found = [title for (_, title), group in zip(headings, [*groups, False], strict=True) if not group]
    assert found
    assert [title for title in found if not title.endswith("?")] == []


def test_the_site_wraps_lines_that_are_longer_than_the_screen() -> None:
    assert "white-space: pre-wrap" in (ROOT / "docs/styles/site.css").read_text()


def test_pages_load_no_external_files() -> None:
    for page in PAGES:
        assert "```mermaid" not in page.read_text(), f"{page.name}: mermaid is loaded from a network"


def every_kind(family: type) -> set[type]:
    kinds: set[type] = set()
    kind: type
    for kind in family.__subclasses__():
        kinds |= {kind} | every_kind(kind)
    return kinds


def test_the_settings_pages_list_every_class_that_yaml_can_name() -> None:
    import_all_parts()
    pages = "\n".join(page.read_text() for page in SETTINGS)
    listed = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    kinds = {kind for family in FAMILIES for kind in every_kind(family)} | every_kind(Schedule)
    wanted = {
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in kinds
        if kind.__module__.startswith("imagen_pl.")
        and not kind.__module__.startswith("imagen_pl.planning.")
        and not kind.__name__.startswith("_")
        and not inspect.isabstract(kind)
    }
    # Base classes, which YAML does not name.
    wanted -= {
        "imagen_pl.losses.self_supervised.SelfSupervisedTask",
    }
    assert wanted - listed == set()


def fit(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, name: str) -> list[dict[str, str]]:
    """Train the tiny run with an example of the page and return its metrics."""
    for ending in ("py", "yaml"):
        Path(f"{name}.{ending}").write_text(EXAMPLES[f"{name}.{ending}"])
    monkeypatch.syspath_prepend(".")
    assert main(["fit", *tiny.words, "--config", f"{name}.yaml"]) == 0
    with (tiny.run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def numbers(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row.get(name)]


def test_page_has_four_examples() -> None:
    assert sorted(EXAMPLES) == sorted(
        f"{n}.{e}" for n in ("squeezing", "warm", "discs", "spread") for e in ("py", "yaml")
    )


def test_the_example_block_trains(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(tiny, monkeypatch, "squeezing")
    weights = torch.load(tiny.run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert weights["ema.generator.grown.8.weigh.0.weight"].shape == (4, 8)


def test_the_example_loss_trains_the_generator(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = fit(tiny, monkeypatch, "warm")
    assert numbers(rows, "train/g_warmth")
    assert "train/d_warmth" not in rows[-1]


def test_the_example_source_is_read(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers(fit(tiny, monkeypatch, "discs"), "val/mean_colour")


def test_the_example_metric_is_logged(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers(fit(tiny, monkeypatch, "spread"), "val/spread_efficientnet_lite0")


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site/settings/networks/index.html").read_text()
    assert "Feature maps at each resolution".lower() in page.lower()
    assert not re.search(r"^WARNING", done.stderr, re.MULTILINE)


@pytest.mark.parametrize("exported", [True, False])
def test_the_exported_web_page_is_linked_if_it_exists(exported: bool) -> None:
    spec = importlib.util.spec_from_file_location("hook", ROOT / "docs/try_it_here.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    found = {"try/index.html": object()} if exported else {}

    page = hook.on_page_markdown(
        (ROOT / "docs/web.md").read_text(), files=SimpleNamespace(get_file_from_path=found.get)
    )

    assert ("](try/index.html)" in page) is exported
    assert "<!--" not in page
