"""The style encoder: it learns to find the styles of the generator's own pictures, and fits no other one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imagen_pl.errors import UserError
from imagen_pl.inference.projection import drawn_with, encode_styles, mean_style, project, psnr
from imagen_pl.inference.style_encoder_fit import StyleEncoderFit
from imagen_pl.models.generators.style import StyleGenerator
from imagen_pl.models.style_encoder import StyleEncoder, load_encoder, save_encoder
from imagen_pl.types import Growth
from tests.helpers.fakes import TinyBackbone, TinyText
from tests.helpers.networks import awaken, small_generator

pytestmark = pytest.mark.usefixtures("one_thread")
GROWN = Growth(16)
CAPTIONS = ["a red heart", "a blue square", "a cat"]


@pytest.fixture(scope="module")
def generator() -> StyleGenerator:
    made = small_generator(text_dim=16, style_dim=16)
    awaken(made)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def trained(generator: StyleGenerator) -> StyleEncoder:
    """For a few seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = StyleEncoder(16, 3, 16, width=8)
    fit = StyleEncoderFit(encoder, generator, TinyText(), CAPTIONS, GROWN, TinyBackbone(), steps=150)
    for number in range(fit.steps):
        fit.step(number)
    return encoder.eval().requires_grad_(False)


def test_an_untrained_encoder_gives_the_mean_style() -> None:
    encoder, mean = StyleEncoder(16, 3, 16, width=8), torch.randn(2, 16)
    expected = torch.nn.functional.layer_norm(mean, (16,))[:, None].expand(2, 3, 16)
    torch.testing.assert_close(encoder(torch.randn(2, 3, 16, 16), mean), expected)


def test_it_learns_the_styles_of_own_pictures(generator: StyleGenerator, trained: StyleEncoder) -> None:
    text = TinyText().encode(CAPTIONS * 8)
    z = torch.randn(24, 5, generator=torch.Generator().manual_seed(9))
    styles = generator.style(z, text)
    images = drawn_with(generator, styles[:, None], text, GROWN)
    start = mean_style(generator, text, torch.Generator().manual_seed(0))[:, None]

    found = encode_styles(trained, generator, images, text)

    far = [1 - torch.cosine_similarity(each, styles[:, None], dim=-1).mean() for each in (found, start)]
    assert far[0] < 0.5 * far[1]
    off = [psnr(drawn_with(generator, each, text, GROWN), images).mean() for each in (found, start)]
    assert off[0] > off[1] + 3


def test_a_search_can_start_from_it(generator: StyleGenerator, trained: StyleEncoder) -> None:
    text = TinyText().encode(CAPTIONS)
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(9))
    images = drawn_with(generator, generator.style(z, text)[:, None], text, GROWN)
    start = encode_styles(trained, generator, images, text)

    def score(steps: int, begin: torch.Tensor | None) -> float:
        found = project(generator, images, text, GROWN, TinyBackbone(), steps, start=begin)
        return float(psnr(drawn_with(generator, found, text, GROWN), images).mean())

    unmoved = project(generator, images, text, GROWN, TinyBackbone(), 0, start=start)
    torch.testing.assert_close(unmoved, start, atol=1e-4, rtol=1e-4)
    assert score(20, start) > score(20, None)


def test_every_parameter_is_trained(generator: StyleGenerator) -> None:
    torch.manual_seed(0)
    encoder = StyleEncoder(16, 3, 16, width=8)
    before = {name: each.clone() for name, each in encoder.state_dict().items()}
    fit = StyleEncoderFit(encoder, generator, TinyText(), CAPTIONS, GROWN, TinyBackbone(), steps=4)
    for number in range(4):
        parts = fit.step(number)
    assert set(parts) == {"style", "pixels", "perceptual"}
    assert all(not torch.equal(before[name], each) for name, each in encoder.state_dict().items())


def test_it_is_saved_with_its_sizes(generator: StyleGenerator, trained: StyleEncoder, tmp_path: Path) -> None:
    file = tmp_path / "encoder.safetensors"
    save_encoder(trained, file, generator)
    again = load_encoder(file, generator, 16)

    images, mean = torch.randn(2, 3, 16, 16), torch.randn(2, 16)
    torch.testing.assert_close(again(images, mean), trained(images, mean), atol=1e-2, rtol=0)


def test_wrong_files_give_one_clear_line(
    generator: StyleGenerator, trained: StyleEncoder, tmp_path: Path
) -> None:
    file = tmp_path / "encoder.safetensors"
    with pytest.raises(UserError, match="there is no such file; `imagen-pl fit-encoder MODEL` makes one"):
        load_encoder(file, generator, 16)
    file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read: it is damaged, or no encoder"):
        load_encoder(file, generator, 16)
    save_encoder(trained, file, generator)
    with pytest.raises(UserError, match="was made for another model, or another size of pictures"):
        load_encoder(file, generator, 32)
    other = small_generator(text_dim=16, style_dim=16)
    with pytest.raises(UserError, match="was made for another model"):
        load_encoder(file, other, 16)
