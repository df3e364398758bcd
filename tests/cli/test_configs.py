"""Every YAML file under configs/: it trains a few batches by the command line, and explains its settings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from imagen_pl.cli.main import main
from imagen_pl.cli.new import TEMPLATE
from imagen_pl.cli.training_cli import TrainingCLI
from imagen_pl.data.build_icons import build_icons
from imagen_pl.data.image_caption_pairs import ImageCaptionPairs
from imagen_pl.schedules import Stage, check_stages
from imagen_pl.training import kernel_ridge_fit
from tests.helpers.autoencoders import write_autoencoder
from tests.helpers.icon_packages import write_icon_packages
from tests.helpers.image_files import COLOURS, encoded, noise, write_coco, write_photos, write_tar
from tests.helpers.runs import REPOSITORY
from tests.helpers.transformers_models import save_bert, save_clip_text

CONFIGS = REPOSITORY / "configs"
# Without launcher files: tests/cli/test_cluster_scripts.py
FILES = sorted(
    path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if path.parent.name != "cluster"
)
CAPTIONER = "experiment/captioner.yaml"  # of another command
SWEEP = "tracking/sweep.yaml"  # tests/cli/test_sweep.py
PUBLISHED = "published/"  # tests/cli/test_published.py
SIDE = 128  # images of half of 256 px are not too small for any file


def read(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    return config


def files_of(name: str) -> list[str]:
    """The --config files: a whole recipe alone; an overlay after those in its comment's command."""
    if name in BASES:
        return [name]
    found = named_in(name)
    assert found[-1] == name, f"{name} shows no command that uses it"
    assert found[0] in BASES
    return found


def named_in(name: str) -> list[str]:
    """The files in the commands of its comments, each once."""
    text = (CONFIGS / name).read_text(encoding="utf-8")
    return list(dict.fromkeys(re.findall(r"--config configs/(\S+\.yaml)", text)))


BASES = [
    name
    for name in FILES
    if name.split("/")[0] in ("debug", "experiment", "published")
    and name != CAPTIONER
    and named_in(name)[:1] in ([], [name])
]


def small(base: dict[str, Any], growth: dict[str, Any]) -> dict[str, Any]:
    """The recipe's structure with narrow networks, and two batches of 4 in each stage."""
    stages = [
        {**stage, "share": None, "fade_share": 0.0}
        | {"kimg": 0.008, "fade_kimg": 0.008 if stage.get("fade_kimg") else 0.0, "batch_size": 4}
        for stage in growth["stages"]
    ]
    networks = {name: {"init_args": narrow(base["model"][name])} for name in ("generator", "discriminator")}
    return {
        "growth": {"stages": stages, "kimg_scale": 1.0},
        "model": networks,
        "data": {"num_workers": 0, "epoch_kimg": 0.008 * len(stages), "val_samples": 4},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "max_steps": 4 * len(stages),
            "log_every_n_steps": 1,
        },
    }


def first_of(network: dict[str, Any]) -> dict[str, Any]:
    """Settings of a network, of the first of several discriminators, or of the one within one of latents."""
    for within in ("generator", "discriminator"):
        if within in network["init_args"]:
            return first_of(network["init_args"][within])
    found: dict[str, Any] = network["init_args"].get("discriminators", [network])[0]["init_args"]
    return found


def narrow(network: dict[str, Any]) -> dict[str, Any]:
    """The setting that gives its layers 8 units or feature maps at most."""
    for within in ("generator", "discriminator"):
        if within in network["init_args"]:
            return {within: {"init_args": narrow(network["init_args"][within])}}
    settings = first_of(network)
    if "widths" in settings:
        return {"widths": [8 for _ in settings["widths"]]}
    if "width" in settings:
        return {"width": 4 * settings["heads"]}
    if isinstance(settings["channels"], list):
        return {"channels": [8 for _ in settings["channels"]]}
    return {"channels": {r: min(c, 8) for r, c in settings["channels"].items()}}


def resolutions_of(network: dict[str, Any]) -> set[int]:
    settings = first_of(network)
    by_resolution = isinstance(settings.get("channels"), dict)
    found = set(settings["channels"]) if by_resolution else {settings["resolution"]}
    is_latent = not {"generator", "discriminator"}.isdisjoint(network["init_args"])
    return {4 * side for side in found} if is_latent else found  # the autoencoders of the recipes


def has_prior(file: str) -> bool:
    return "prior" in read(file).get("model", {}).get("generator", {}).get("init_args", {})


def losses_of(files: list[str]) -> list[dict[str, Any]]:
    """The loss terms of a base and its overlays."""
    losses: list[dict[str, Any]] = []
    for file in files:
        model = read(file).get("model", {})
        losses = [*model.get("losses", losses), *model.get("losses+", [])]
    return losses


def thin(loss: dict[str, Any]) -> dict[str, Any]:
    """A loss term for narrow networks: for maps of 8 channels, and with a tiny captioner."""
    settings: dict[str, Any] = {
        k: 8 if k.endswith("_channels") else v for k, v in loss.get("init_args", {}).items()
    }
    if "captioner" in settings:
        tiny = {"vocab_size": 300, "dim": 16, "layers": 1, "heads": 2}
        captioner = settings["captioner"]
        settings["captioner"] = {**captioner, "init_args": {**captioner["init_args"], **tiny}}
        settings["every"] = 1
    return {**loss, "init_args": settings} if settings else loss


def folder(path: Path) -> dict[str, Any]:
    write_photos(path, 12, SIDE)
    return {"path": str(path)}


def coco(path: Path) -> dict[str, Any]:
    write_coco(path, SIDE)
    return {"path": str(path)}


def columns() -> dict[str, list[Any]]:
    images = [encoded(noise(SIDE, SIDE, seed=i), "JPEG") for i in range(12)]
    return {"image": images, "text": [f"noise {i}" for i in range(12)]}


def parquet(path: Path) -> dict[str, Any]:
    import pyarrow
    from pyarrow import parquet as files

    path.mkdir(parents=True)
    files.write_table(pyarrow.table(columns()), path / "train-0.parquet")
    return {"path": str(path)}


def huggingface(path: Path) -> dict[str, Any]:
    import datasets

    table = datasets.Dataset.from_dict(columns()).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": table}).save_to_disk(str(path))
    return {"path": str(path)}


def webdataset(path: Path) -> dict[str, Any]:
    for shard in range(3):
        files = {}
        for i in range(8):
            files[f"{i}.jpg"] = encoded(noise(SIDE, SIDE, seed=8 * shard + i), "JPEG")
            files[f"{i}.txt"] = f"a {COLOURS[i]} noise".encode()
        write_tar(path / f"{shard:03}.tar", files)
    return {"path": str(path)}


def icons(path: Path) -> dict[str, Any]:
    build_icons(path, 32, packages=write_icon_packages(path.parent / "packages", more=24), jobs=1)
    return {"path": str(path), "sets": None}  # the sets are others


DRAWER = "imagen_pl.models.generators.style.StyleGenerator"
SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "FolderSource": folder,
    "CocoSource": coco,
    "ParquetSource": parquet,
    "HuggingFaceSource": huggingface,
    "WebDatasetSource": webdataset,
    "IconSource": icons,
    "EmojiSource": lambda path: {"styles": ["fluent"]},  # a third of the captions to encode
}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Encoders of one layer, as wide as those that the files name."""
    torch.manual_seed(0)
    return {
        "shipped": save_bert(tmp_path_factory.mktemp("bert384"), 384),
        "openai/clip-vit-large-patch14": save_clip_text(tmp_path_factory.mktemp("clip768"), 768),
    }


@pytest.fixture
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network for Inception's weights, even if the machine has one, and an empty cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.mark.usefixtures("_offline")
@pytest.mark.parametrize(
    "name", [name for name in FILES if name not in (CAPTIONER, SWEEP) and not name.startswith(PUBLISHED)]
)
def test_every_config_trains(
    name: str,
    encoders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    files = files_of(name)
    base = files[0]
    merged: dict[str, Any] = {"growth": {}, "model": {}, "data": {}}
    for file in files:
        for section in merged:
            merged[section] |= read(file).get(section, {})
    changes = small(read(base), merged["growth"])
    source = merged["data"]["source"]["class_path"]
    changes["data"]["source"] = {
        "class_path": source,
        "init_args": SOURCES[source.rsplit(".", 1)[-1]](tmp_path / "source"),
    }
    if "crop_from" in merged["data"]:
        changes["data"]["min_size"] = 1
    generator = merged["model"]["generator"]
    if "autoencoder" in generator.get("init_args", {}):
        write_autoencoder(tmp_path / "runs/autoencoder", latent_channels=4)
        changes["data"]["min_size"] = 1  # icons of 32 px
    prior = {"captions": 16, "backbone": {"init_args": {"size": 32}}}
    if generator.get("class_path", DRAWER) == DRAWER and any(has_prior(file) for file in files):
        changes["model"]["generator"]["init_args"]["prior"] = {"init_args": prior}
    losses = losses_of(files)
    changes["model"]["losses"] = [thin(loss) for loss in losses]
    if judges := merged["model"]["discriminator"].get("init_args", {}).get("discriminators"):
        # A list is set as a whole; the first item has the recipe's class.
        judges[0]["init_args"] |= changes["model"]["discriminator"]["init_args"]
        changes["model"]["discriminator"] = {"init_args": {"discriminators": judges}}
    if any("captioner" in loss.get("init_args", {}) for loss in losses):
        # A third optimizer, whose steps Lightning counts too.
        changes["trainer"]["max_steps"] = 6 * len(changes["growth"]["stages"])
    if merged["model"]["generator"].get("init_args", {}).get("init_from"):  # tests/cli/test_init_from.py
        changes["model"]["generator"]["init_args"]["init_from"] = None
    if not merged["model"]["text_encoder"].get("class_path", "").endswith("NoText"):
        encoder = merged["model"]["text_encoder"].get("init_args", {}).get("name", "shipped")
        changes["model"]["text_encoder"] = {"init_args": {"name": str(encoders[encoder])}}
    if name != base and not name.startswith("metrics/"):  # those of whole recipes are tested already
        changes["model"]["metrics"], changes["checkpoint"] = [], {"monitor": None}
    Path("small.yaml").write_text(yaml.safe_dump(changes))
    all_batches = ImageCaptionPairs.batches
    monkeypatch.setattr(
        ImageCaptionPairs,
        "batches",
        lambda self, number, *how, **more: all_batches(self, min(number, 32), *how, **more),
    )
    monkeypatch.setattr(kernel_ridge_fit, "_save", lambda *_: None)  # no other test has a fit to so few

    words = [word for file in files for word in ("--config", str(CONFIGS / file))]
    assert main(["fit", *words, "--config", "small.yaml", "--name", "run"]) == 0, capsys.readouterr().err
    output = capsys.readouterr()
    batches = 2 * len(changes["growth"]["stages"])
    assert f"Trained on {4 * batches} images." in output.out
    checkpoint = torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["growth_resolution"] == changes["growth"]["stages"][-1]["resolution"]


@pytest.mark.usefixtures("_offline")
def test_captioner_config_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {
        "model": {"kimg": 0.016},
        "data": {
            "source": {"init_args": {"styles": ["fluent"]}},
            "batch_size": 8,
            "epoch_kimg": 1,
            "val_samples": 4,
            "num_workers": 0,
        },
        "trainer": {"accelerator": "cpu"},
    }
    Path("small.yaml").write_text(yaml.safe_dump(changes))
    assert main(["fit-captioner", "--config", str(CONFIGS / CAPTIONER), "--config", "small.yaml"]) == 0
    assert json.loads(Path("runs/captioner/config.json").read_text())["images_seen"] == 16


@pytest.mark.parametrize("name", BASES)
def test_stages_of_the_configs_are_valid_for_their_networks(name: str) -> None:
    stages = [Stage(**stage) for stage in read(name)["growth"]["stages"]]
    check_stages(stages)
    for network in ("generator", "discriminator"):
        assert {s.resolution for s in stages} <= resolutions_of(read(name)["model"][network])
    if "coco" in name and not name.startswith(PUBLISHED):  # its comment says so
        assert all(s.batch_size % 8 == 0 and s.batch_size % 32 == 0 for s in stages)


@pytest.mark.parametrize("taken", [[0, 3, 3], [0, 0]])
def test_equally_long_list_keeps_settings_that_its_items_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[int]
) -> None:
    """As docs/faq.md and --help say: growing.yaml has three stages, the last two with fades of 3."""
    monkeypatch.chdir(tmp_path)  # no run of that name exists
    stages = [{"resolution": 8 * 2**i, "kimg": 5, "batch_size": 4} for i in range(len(taken))]
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump({"growth": {"stages": stages}}))
    files = [
        CONFIGS / "experiment/quickstart.yaml",
        CONFIGS / "growth/progressive.yaml",
        tmp_path / "stages.yaml",
    ]
    cli = TrainingCLI([word for file in files for word in ("--config", str(file))], run=False)
    assert [stage.fade_kimg for stage in cli.config.growth.stages] == taken


@pytest.mark.parametrize(
    "file", [*(CONFIGS / name for name in FILES), *TEMPLATE.glob("configs/*")], ids=lambda path: path.stem
)
def test_every_setting_is_explained(file: Path) -> None:
    """By a comment above it, above its list item, or at its first occurrence."""
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    explained: set[str] = set()
    item = -1  # indentation of the list item with a comment above it
    for before, line in pairwise(lines):
        setting = re.match(r"( +)(- )?(\w+): *(\S.*)?$", line)
        if setting is None:
            continue
        indent, commented = len(setting[1]), before.lstrip().startswith("#")
        if indent <= item or setting[2]:
            item = indent if setting[2] and commented else -1
        if setting[4] and setting[3] != "class_path":
            if commented or item >= 0:
                explained.add(setting[3])
            assert setting[3] in explained, f"{file}: {line.strip()} has no comment above it"
