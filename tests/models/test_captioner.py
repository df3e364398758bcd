"""The captioner and its tokenizers: training, captions and saved files."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.models.captioner.image_features import BackboneFeatures, DiscriminatorFeatures
from imagen_pl.models.captioner.model import Captioner
from imagen_pl.models.captioner.tokenizers import BytePairs, KnownTokens
from imagen_pl.models.captioner.weights import load_weights, save_weights
from imagen_pl.models.pretrained.backbones import Backbone
from tests.helpers.captioners import Pixels, tiny_captioner
from tests.helpers.training import weights_of
from tests.helpers.transformers_models import save_bert

pytestmark = pytest.mark.usefixtures("one_thread")

COLOURS = ("red", "green", "blue", "golden", "dark", "pale", "spotted", "plain")
THINGS = ("heart", "cat", "ball", "new moon")
CAPTIONS = [f"{colour} {thing}, fluent style" for thing in THINGS for colour in COLOURS]  # 32
ODD = "Ünïcode 東京 🎉 \x00\ttwo  spaces"


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(len(CAPTIONS), 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def taught(images: Tensor) -> Captioner:
    """A captioner that has overfitted 32 pairs."""
    torch.set_num_threads(1)
    captioner = tiny_captioner(dim=32, layers=2)
    captioner.prepare(lambda: CAPTIONS)
    optimizer = torch.optim.Adam(captioner.parameters(), lr=6e-3)
    for _ in range(120):
        loss = captioner.cross_entropy(captioner.extract_features(images), CAPTIONS).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return captioner


# ------------------------------------------------------------------ tokens


def test_byte_pairs_encode_and_decode_any_text() -> None:
    tokens = BytePairs(400)
    for learnt in (False, True):
        if learnt:
            tokens.fit(CAPTIONS)
        for text in (*CAPTIONS, ODD, "", "x"):
            assert tokens.decode(tokens.encode([text])[0]) == text
    assert len(tokens.encode(["red heart, fluent style"])[0]) <= 5  # whole words
    assert len(tokens.encode(["xyzzy"])[0]) > 3


def test_byte_pairs_depend_on_the_captions_alone() -> None:
    first, second = BytePairs(400), BytePairs(400)
    first.fit(CAPTIONS)
    second.fit(["something", "else entirely"])
    second.fit([*reversed(CAPTIONS), CAPTIONS[0]])
    assert torch.equal(first.merges, second.merges)
    numbers = {n for row in first.encode(CAPTIONS) for n in row}
    assert max(numbers) < first.size
    assert not numbers & {first.start, first.end}


def test_vocabulary_has_the_given_size() -> None:
    small = BytePairs(262)
    small.fit(CAPTIONS)
    assert small.merges.shape == (4, 2)
    assert int(small.merges.min()) >= 0  # all four are used
    assert small.decode(small.encode([ODD])[0]) == ODD
    with pytest.raises(UserError, match=r"captioner\.vocab_size 100 must be 258 or more"):
        BytePairs(100)


def test_byte_pairs_are_saved_with_the_weights() -> None:
    first, second = BytePairs(400), BytePairs(400)
    first.fit(CAPTIONS)
    assert second.encode(CAPTIONS) != first.encode(CAPTIONS)
    second.load_state_dict(first.state_dict())
    assert second.encode(CAPTIONS) == first.encode(CAPTIONS)
    assert copy.deepcopy(first).encode(CAPTIONS) == first.encode(CAPTIONS)


def test_lone_surrogates_are_replaced() -> None:
    tokens = BytePairs(258)
    assert tokens.decode(tokens.encode(["a \ud83d b"])[0]) == "a ? b"


def test_tokenizer_of_transformers_works(tmp_path: Path) -> None:
    tokens = KnownTokens(str(save_bert(tmp_path)))
    (numbers,) = tokens.encode(["a red heart, cat"])
    assert not {tokens.start, tokens.end} & set(numbers)
    assert tokens.start != tokens.end
    assert tokens.decode([*numbers, tokens.end, 10**6]) == "a red heart, cat"
    captioner = tiny_captioner(tokenizer=str(tmp_path))
    assert captioner.cross_entropy(captioner.extract_features(torch.zeros(1, 3, 8, 8)), ["a cat"]).shape == (
        1,
    )


def test_missing_tokenizer_gives_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"tokenizer {tmp_path}/nowhere: there is no such folder"):
        KnownTokens(f"{tmp_path}/nowhere")


# ------------------------------------------------------------------ training and captions


def test_captioner_overfits_and_reproduces_captions(taught: Captioner, images: Tensor) -> None:
    memory = taught.extract_features(images)
    assert taught.cross_entropy(memory, CAPTIONS).max().item() < 0.1
    assert taught.caption(memory) == CAPTIONS
    assert taught.caption(memory[5:6]) == CAPTIONS[5:6]
    assert taught.caption(memory, num_beams=3) == CAPTIONS
    assert taught.training


def test_own_captions_have_lower_loss_than_others(taught: Captioner, images: Tensor) -> None:
    memory = taught.extract_features(images)
    own = taught.cross_entropy(memory, CAPTIONS)
    other = taught.cross_entropy(memory.roll(1, 0), CAPTIONS)
    assert float((other - own).mean()) > 0.5


def test_sampled_captions_depend_on_the_seed(images: Tensor) -> None:
    captioner = tiny_captioner()
    captioner.prepare(lambda: CAPTIONS)
    memory = captioner.extract_features(images[:4])

    def draw(seed: int, temperature: float = 1.0) -> list[str]:
        torch.manual_seed(seed)
        return captioner.caption(memory, do_sample=True, temperature=temperature)

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert draw(0, temperature=1e-4) == captioner.caption(memory)


def test_beam_search_finds_likelier_captions(taught: Captioner, images: Tensor) -> None:
    """Of images that it never saw, four beams find captions that are likelier than the greedy ones."""
    memory = taught.extract_features(
        torch.cat([images.flip(-1), images.flip(-2), images.flip(1)]) / 2
    ).detach()
    greedy, beams = taught.caption(memory), taught.caption(memory, num_beams=4)
    assert greedy != beams
    gain = taught.cross_entropy(memory, greedy) - taught.cross_entropy(memory, beams)
    assert gain.mean().item() > 0


def test_cross_entropy_is_the_mean_over_a_captions_tokens() -> None:
    captioner = tiny_captioner()
    captioner.prepare(lambda: CAPTIONS)
    memory = captioner.extract_features(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    captions = ["red heart, fluent style", "a new moon"]
    batched = captioner.cross_entropy(memory, captions)
    for i, caption in enumerate(captions):
        numbers = [captioner.tokens.start, *captioner.tokens.encode([caption])[0], captioner.tokens.end]
        given = torch.tensor([numbers[:-1]])
        logits = captioner.decoder(given, encoder_hidden_states=memory[i : i + 1]).logits[0]
        expected = F.cross_entropy(logits, torch.tensor(numbers[1:]))
        torch.testing.assert_close(batched[i], expected)
    same = captioner.cross_entropy(memory[:1].expand(2, -1, -1), [captions[0]] * 2)
    torch.testing.assert_close(same, batched[:1].expand(2))


def test_empty_captions_have_no_loss_and_long_ones_are_truncated() -> None:
    captioner = tiny_captioner(max_tokens=4)
    memory = captioner.extract_features(torch.zeros(3, 3, 8, 8))
    empty, long, longer = captioner.cross_entropy(memory, ["", "abcd", "abcdefghijkl"])
    assert empty == 0
    assert float(long) == pytest.approx(float(longer), rel=1e-5)
    assert math.isfinite(long)
    assert len(captioner.caption(memory)) == 3


def test_loss_depends_on_the_positions_of_pixels() -> None:
    """An image and its mirror image have different losses."""
    captioner = tiny_captioner()
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    captions = ["red heart"]
    a, b = (captioner.cross_entropy(captioner.extract_features(x), captions) for x in (image, image.flip(-1)))
    assert a != b


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 18, "heads": 4}, "captioner.dim 18 must be divisible by its 4 heads"),
        ({"max_tokens": 1}, "captioner.max_tokens 1 must be 2 or more"),
    ],
)
def test_invalid_sizes_raise(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_captioner(**settings)


# ------------------------------------------------------------------ image features


class Halves(Backbone):
    """Two maps: the image, and at half the size in twice the channels."""

    name, size, channels = "halves", 8, (3, 6)

    def __call__(self, images: Tensor) -> list[Tensor]:
        half = F.avg_pool2d(images, 2)
        return [images, torch.cat([half, -half], 1)]

    _read = _channels = _maps = _normalisation = None  # type: ignore[assignment]


def test_all_backbone_maps_are_read_and_images_get_gradients() -> None:
    captioner = tiny_captioner(features=BackboneFeatures(Halves()))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    memory = captioner.extract_features(images)
    assert memory.shape == (2, 64 + 16, 16)
    captioner.cross_entropy(memory, ["a", "b"]).sum().backward()
    assert images.grad is not None
    assert bool(images.grad.any(dim=(1, 2, 3)).all())
    assert all(p.grad is not None and p.grad.any() for p in captioner.doors.parameters())


def test_default_backbone_is_the_installed_network() -> None:
    captioner = Captioner(dim=16, heads=2, layers=1, vocab_size=300)
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    memory = captioner.extract_features(images)
    assert memory.shape == (1, 8 * 8 + 4 * 4, 16)
    memory.sum().backward()
    assert images.grad is not None
    assert not [name for name in captioner.state_dict() if name.startswith("features")]


def test_discriminator_features_are_its_maps() -> None:
    features = DiscriminatorFeatures(channels=5, resolution=8)
    captioner = tiny_captioner(features=features)
    seen = {16: torch.zeros(2, 7, 16, 16), 8: torch.randn(2, 5, 8, 8)}
    assert captioner.extract_features(torch.zeros(2, 3, 16, 16), seen).shape == (2, 64, 16)
    features.check({16: 7, 8: 5})
    with pytest.raises(UserError, match=r"features\.channels is 5, .* 8 px has 6: set it to 6"):
        features.check({16: 7, 8: 6})
    with pytest.raises(
        UserError, match=r"features\.resolution 8 is not among the discriminator's maps \[16\]"
    ):
        features.check({16: 7})
    with pytest.raises(UserError, match=r"not among the maps of this stage, \[4\]"):
        captioner.extract_features(torch.zeros(2, 3, 4, 4), {4: torch.zeros(2, 5, 4, 4)})
    with pytest.raises(UserError, match="need a discriminator"):
        captioner.extract_features(torch.zeros(2, 3, 16, 16))


# ------------------------------------------------------------------ saving and loading


def test_weights_and_byte_pairs_are_saved_and_loaded(
    taught: Captioner, images: Tensor, tmp_path: Path
) -> None:
    save_weights(taught, tmp_path)
    other = tiny_captioner(dim=32, layers=2)
    load_weights(other, tmp_path)
    assert other.caption(other.extract_features(images)) == CAPTIONS
    for name, value in weights_of(taught).items():
        assert torch.equal(other.state_dict()[name], value), name


def test_unusable_files_give_one_line_error(tmp_path: Path) -> None:
    captioner = tiny_captioner()
    with pytest.raises(UserError, match=r"there is no captioner\.safetensors; `imagen-pl fit-captioner"):
        load_weights(captioner, tmp_path)
    file = save_weights(captioner, tmp_path)
    with pytest.raises(UserError, match=r"has other sizes \(kinds differs\): .*config\.json"):
        load_weights(tiny_captioner(dim=32), tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read: it is damaged"):
        load_weights(captioner, tmp_path)


def test_test_images_have_the_expected_pixels() -> None:
    assert Pixels()(torch.ones(1, 3, 16, 16))[0].shape == (1, 3, 4, 4)
