"""Autoencoders: ours, those of diffusers, and the cache of latents."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imagen_pl.data.batch_samplers import BatchPlan
from imagen_pl.data.dataset import RowImages
from imagen_pl.data.sample_processing import SampleProcessing
from imagen_pl.errors import UserError
from imagen_pl.models.autoencoders.convolutional import AutoencoderNetwork, ConvAutoencoder
from imagen_pl.models.autoencoders.diffusers import DiffusersAutoencoder
from imagen_pl.models.autoencoders.latent_cache import LatentCache, latent_file, write_latents
from imagen_pl.models.pretrained.backbones import frozen_names
from tests.helpers.autoencoders import write_autoencoder, write_diffusers_autoencoder
from tests.helpers.training import tiny_data

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("channels", "side"), [([4], 8), ([4, 4], 4), ([4, 4, 4], 2)])
def test_latents_are_a_fraction_of_the_images(
    channels: list[int], side: int, images: Tensor, tmp_path: Path
) -> None:
    autoencoder = ConvAutoencoder(str(write_autoencoder(tmp_path, channels=channels)))
    assert autoencoder.downsampling == 16 // side
    latents = autoencoder.encode(images)
    assert latents.shape == (3, 2, side, side)
    assert autoencoder.decode(latents).shape == images.shape


def test_latents_are_scaled_by_what_was_measured_and_decoded_back(images: Tensor, tmp_path: Path) -> None:
    autoencoder = ConvAutoencoder(str(write_autoencoder(tmp_path)))
    latents = autoencoder.encode(images)
    network = autoencoder.on(torch.device("cpu"))
    assert isinstance(network, AutoencoderNetwork)
    raw = network.posterior(images)[0]
    torch.testing.assert_close(latents, (raw - network.mean) / network.std)
    torch.testing.assert_close(autoencoder.decode(latents), network.decode(raw))


def test_only_the_latents_get_a_gradient(images: Tensor, tmp_path: Path) -> None:
    autoencoder = ConvAutoencoder(str(write_autoencoder(tmp_path)))
    latents = autoencoder.encode(images.requires_grad_(True)).requires_grad_(True)
    autoencoder.decode(latents).sum().backward()
    network = autoencoder.on(torch.device("cpu"))
    assert latents.grad is not None
    assert images.grad is None
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not network.training


def test_the_sizes_and_weights_of_a_checkpoint_do_not_need_the_folder(images: Tensor, tmp_path: Path) -> None:
    trained = ConvAutoencoder(str(write_autoencoder(tmp_path)))
    other = ConvAutoencoder(sizes=trained.sizes)
    with pytest.raises(UserError, match="there are no weights of these sizes"):
        other.encode(images)
    other.load_weights(trained.weights())
    assert torch.equal(other.encode(images), trained.encode(images))
    again = pickle.loads(pickle.dumps(other))
    assert torch.equal(again.encode(images), trained.encode(images))
    assert copy.deepcopy(other) is other


def test_weights_of_other_sizes_are_not_used(images: Tensor, tmp_path: Path) -> None:
    wanted = ConvAutoencoder(str(write_autoencoder(tmp_path))).sizes
    write_autoencoder(tmp_path, channels=[4, 8])
    with pytest.raises(UserError, match="there are no weights of these sizes"):
        ConvAutoencoder(str(tmp_path), wanted).encode(images)


def test_the_network_that_taught_it_must_not_score_a_model(tmp_path: Path) -> None:
    module = torch.nn.Module()
    module.__dict__["autoencoder"] = ConvAutoencoder(
        str(write_autoencoder(tmp_path, teacher_networks=["tiny"]))
    )
    assert "tiny" in frozen_names(module)


def test_a_missing_or_damaged_autoencoder_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no autoencoder in .*nowhere"):
        ConvAutoencoder(str(tmp_path / "nowhere"))
    write_autoencoder(tmp_path)
    (tmp_path / "autoencoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="is damaged"):
        ConvAutoencoder(str(tmp_path)).load()
    (tmp_path / "config.json").write_text(json.dumps({"format": 99, "imagen_pl": "9"}))
    with pytest.raises(UserError, match="a newer imagen_pl"):
        ConvAutoencoder(str(tmp_path))


# ------------------------------------------------------------------ diffusers


def test_an_autoencoder_of_diffusers_encodes_and_decodes(images: Tensor, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    folder = write_diffusers_autoencoder(tmp_path)
    autoencoder = DiffusersAutoencoder(str(folder))
    assert (autoencoder.latent_channels, autoencoder.downsampling) == (2, 2)
    latents = autoencoder.encode(images)
    theirs = AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        expected = theirs.encode(images).latent_dist.mean
        torch.testing.assert_close(latents, 0.5 * expected)
        torch.testing.assert_close(autoencoder.decode(latents), theirs.decode(expected).sample)


def test_a_folder_or_name_without_one_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder contains no AutoencoderKL"):
        DiffusersAutoencoder(str(tmp_path))
    with pytest.raises(UserError, match="cannot be downloaded from the Hugging Face hub"):
        DiffusersAutoencoder("nobody/nothing")


def test_diffusers_that_is_not_installed_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install diffusers"):
        DiffusersAutoencoder("stabilityai/sd-vae-ft-mse")


# ------------------------------------------------------------------ cache


def rows() -> RowImages:
    data = tiny_data(count=40)
    data.setup()
    found = data.fixed_images(16)
    assert found is not None
    return found


def test_cached_latents_equal_fresh_ones(tmp_path: Path) -> None:
    autoencoder = ConvAutoencoder(str(write_autoencoder(tmp_path)))
    file = latent_file(autoencoder, rows(), 16, tmp_path)
    counted: list[int] = []
    write_latents(file, autoencoder, rows(), 16, on_encoded=counted.append)
    assert sum(counted) == 40
    cache = pickle.loads(pickle.dumps(LatentCache({16: file})))
    chosen = np.array([39, 0, 7, 7])
    batch = rows()[BatchPlan(chosen, chosen, 16)]
    fresh = autoencoder.encode(batch.images.float() / 127.5 - 1)
    torch.testing.assert_close(cache(chosen, 16).float(), fresh, atol=2e-3, rtol=2e-3)


def test_another_autoencoder_resolution_or_background_has_another_file(tmp_path: Path) -> None:
    one, other = (ConvAutoencoder(str(write_autoencoder(tmp_path / str(seed), seed=seed))) for seed in (0, 1))
    black = rows()
    black.processing = SampleProcessing(background=(0, 0, 0))
    files = [
        latent_file(one, rows(), 16), latent_file(other, rows(), 16), latent_file(one, rows(), 32),
        latent_file(one, black, 16),
    ]  # fmt: skip
    assert len(set(files)) == 4
    assert latent_file(one, rows(), 16) == files[0]


def test_flipped_and_cropped_images_are_not_cached() -> None:
    for settings in ({"horizontal_flip": True}, {"crop_from": 32}):
        data = tiny_data(**settings)
        data.setup()
        assert data.fixed_images(16) is None


def test_a_damaged_cache_is_reported_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "latents.npy"
    file.write_bytes(b"no array")
    with pytest.raises(UserError, match=r"the cache of latents .* cannot be read"):
        LatentCache({16: file})(np.array([0]), 16)
