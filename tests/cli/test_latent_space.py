"""A GAN of latents by the command line: autoencoder, training, samples, release, exports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from imagen_pl import load
from imagen_pl.cli.main import main
from imagen_pl.models.autoencoders.convolutional import AutoencoderNetwork, ConvAutoencoder
from imagen_pl.models.generators.latent import LatentGenerator
from imagen_pl.training.autoencoder_fit import AutoencoderFit
from tests.helpers.autoencoders import write_autoencoder, write_diffusers_autoencoder
from tests.helpers.commands import one_line_error
from tests.helpers.image_files import write_photos
from tests.helpers.runs import REPOSITORY

SMALL = ["--resolution", "32", "--crop", "16", "--channels", "8", "8", "--batch_size", "4"]


@pytest.fixture(scope="module")
def photos32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), 24, side=32)


def changes(photos: Path, bert: Path) -> dict:
    """The recipe with narrow networks, at 32 px."""
    channels = {4: 8, 8: 8}
    return {
        "growth": {"stages": [{"resolution": 32, "kimg": 1, "batch_size": 4}]},
        "samples": {"captions": ["a red wall", "a blue wall"]},
        "model": {
            "generator": {
                "init_args": {"generator": {"init_args": {"channels": channels, "text_attention_at": []}}}
            },
            "discriminator": {"init_args": {"discriminator": {"init_args": {"channels": channels}}}},
            "text_encoder": {"init_args": {"name": str(bert)}},
            "losses": [{"class_path": "imagen_pl.losses.image_matching.PixelMatching"}],
            "metrics": [{"class_path": "tests.helpers.fakes.MeanColour"}],
        },
        "checkpoint": {"monitor": "val/mean_colour"},
        "data": {
            "source": {"class_path": "FolderSource", "init_args": {"path": str(photos)}},
            "pictures_per_caption": 1,
            "epoch_kimg": 0.016,
            "num_workers": 0,
            "val_fraction": 0.25,
        },
        "trainer": {"accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 1},
    }


def words(folder: Path) -> list[str]:
    config = REPOSITORY / "configs/experiment/icons128_latent.yaml"
    return ["--config", str(config), "--config", str(folder / "small.yaml"), "--name", "latent"]


@pytest.fixture(scope="module")
def trained(photos32: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder and a run on its latents."""
    folder = tmp_path_factory.mktemp("latent")
    (folder / "small.yaml").write_text(yaml.safe_dump(changes(photos32, bert)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit-autoencoder", str(photos32), "--kimg", "0.032", *SMALL]) == 0
        assert main(["fit", *words(folder), "--max_images", "32"]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run alone, without the autoencoder's folder."""
    shutil.copytree(trained / "runs/latent", tmp_path / "runs/latent")
    monkeypatch.chdir(tmp_path)
    return Path("runs/latent")


def test_the_autoencoder_is_scored_and_shown(trained: Path) -> None:
    described = json.loads((trained / "runs/autoencoder/config.json").read_text())
    assert described["images_seen"] == 32
    assert 0 < described["psnr"] < 100
    assert described["autoencoder"]["teacher_networks"] == ["efficientnet_lite0"]
    with Image.open(trained / "runs/autoencoder/reconstructions.png") as sheet:
        assert sheet.height > 2 * 96
    network = ConvAutoencoder(str(trained / "runs/autoencoder")).on(torch.device("cpu"))
    assert isinstance(network, AutoencoderNetwork)
    assert network.std.min() > 0
    assert not torch.equal(network.std, torch.ones_like(network.std))


def test_scores_and_grids_are_of_decoded_images(trained: Path) -> None:
    rows = (trained / "runs/latent/metrics.csv").read_text().splitlines()
    assert "val/mean_colour" in rows[0]
    assert list((trained / "runs/latent/samples").glob("*.png"))


def test_a_run_a_release_and_exports_draw_without_the_autoencoder_s_folder(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = load(run).sample("a red wall")[0]
    assert picture.size == (32, 32)
    assert main(["sample", str(run), "a red wall", "--out", "one.png", "--plain"]) == 0
    assert main(["export", str(run), "--to", "safetensors", "--out", "release"]) == 0
    released = load("release")
    assert isinstance(released.generator, LatentGenerator)
    assert released.sample("a red wall")[0].tobytes() == picture.tobytes()
    assert "runs/autoencoder" not in Path("release/config.json").read_text()
    assert main(["export", str(run), "--to", "torch-export", "--out", "graph"]) == 0, capsys.readouterr().err


def test_a_run_resumes_and_another_starts_from_it(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    start = "--model.generator.init_args.init_from"
    assert main(["fit", *words(trained), "--name", "next", "--max_images", "8", start, "runs/latent"]) == 0
    resume = ["fit", "--config", "runs/next/config.yaml", "--ckpt_path", "last", "--max_images", "16"]
    assert main(resume) == 0


def test_an_autoencoder_of_diffusers_takes_its_place(
    photos32: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its channels and size are taken over; the release names it."""
    monkeypatch.chdir(tmp_path)
    write_diffusers_autoencoder(tmp_path / "vae")
    config = changes(photos32, bert)
    config["growth"]["stages"][0]["resolution"] = 16
    autoencoder = {"class_path": "DiffusersAutoencoder", "init_args": {"name": "vae"}}
    config["model"]["generator"]["init_args"]["autoencoder"] = autoencoder
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", *words(tmp_path), "--max_images", "8"]) == 0
    assert load("runs/latent").sample("a red wall")[0].size == (16, 16)
    state = torch.load("runs/latent/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert not any("autoencoder" in name for name in state)


def test_ctrl_c_keeps_what_was_learnt(
    photos32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = AutoencoderFit.step

    def step(self: AutoencoderFit, images: torch.Tensor, share: float) -> dict[str, float]:
        if self.steps == 2:
            raise KeyboardInterrupt
        return whole(self, images, share)

    monkeypatch.setattr(AutoencoderFit, "step", step)
    assert main(["fit-autoencoder", str(photos32), "--kimg", "1", *SMALL, "--out", "found"]) == 0
    assert "found: trained on 8 squares of 16 px (stopped); PSNR " in capsys.readouterr().out
    assert ConvAutoencoder("found").downsampling == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--crop", "20"], "--crop 20 must be a power of two"),
        (["--crop", "256"], "--crop 256 must be at most --resolution 128"),
        (["--kimg", "0"], "--kimg 0 must be more than 0"),
        (["--max_time", "8 minutes"], "must be DD:HH:MM:SS"),
        (["--out", "photos"], "--out photos exists and is no autoencoder"),
        (["--channels", "8", "8", "8", "8", "8", "8", "8"], "--crop 64 must be a multiple of 128"),
    ],
)
def test_bad_input_gives_one_line_error(
    given: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 2, side=16)
    assert said in one_line_error(["fit-autoencoder", "photos", *given], capsys)


def test_a_missing_autoencoder_is_reported_before_the_first_batch(
    photos32: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(changes(photos32, bert)))
    error = one_line_error(["fit", *words(tmp_path)], capsys)
    assert "there is no autoencoder in runs/autoencoder: `imagen-pl fit-autoencoder" in error


def test_a_folder_of_an_earlier_autoencoder_is_written_again(
    photos32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = write_autoencoder(tmp_path / "found") / "autoencoder.safetensors"
    size = before.stat().st_size
    settings = ["--perceptual_weight", "0", "--kimg", "0.004", *SMALL, "--out", "found"]
    assert main(["fit-autoencoder", str(photos32), *settings]) == 0
    assert before.stat().st_size != size
    assert json.loads(Path("found/config.json").read_text())["autoencoder"]["teacher_networks"] == []
