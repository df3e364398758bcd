"""Which network each loss term trains, in which step: one table, tested with the real module.

A new term is one row more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from imagen_pl.lightning_module import TextToImageGAN
from imagen_pl.losses.adversarial import NonSaturating, Relativistic
from imagen_pl.losses.attribute_classifier import AttributeClassifier
from imagen_pl.losses.base import LossInputs, LossTerm
from imagen_pl.losses.caption_distributions import EnergyMatching, StyleMatching
from imagen_pl.losses.captioning import Captioning
from imagen_pl.losses.clip_guidance import BackboneGuidance, ImageTextGuidance
from imagen_pl.losses.feature_alignment import FeatureAlignment
from imagen_pl.losses.gradient_penalties import (
    R1,
    R2,
    FiniteDifferenceR1,
    FiniteDifferenceR2,
    MatchingAwarePenalty,
    Penalty,
    WassersteinPenalty,
)
from imagen_pl.losses.image_matching import PerceptualMatching, PixelMatching
from imagen_pl.losses.interpolated_captions import InterpolatedCaptionLoss
from imagen_pl.losses.latent_diversity import LatentContrastive, ModeSeeking
from imagen_pl.losses.path_length import PathLength
from imagen_pl.losses.text_matching import FeatureMatching, ImageTextContrastive, MismatchedCaptions
from imagen_pl.losses.translation import (
    CycleConsistency,
    IdentityTranslation,
    StyleDiversity,
    StyleReconstruction,
)
from imagen_pl.models.generators.translator import Translator
from imagen_pl.models.pretrained.backbones import TimmBackbone
from imagen_pl.models.text.adapter import TextAdapter
from imagen_pl.models.text.encoder import FrozenTextEncoder
from imagen_pl.schedules import Stage
from imagen_pl.training.class_paths import import_all_parts
from tests.helpers.captioners import tiny_captioner, tiny_captioning
from tests.helpers.fakes import TinyBackbone, TinyDual
from tests.helpers.networks import awaken
from tests.helpers.tasks import tiny_task
from tests.helpers.training import AtEachBatch, adam, tiny_gan, train
from tests.helpers.transformers_models import save_bert

# The parts that could learn: both networks with their own text adapters, the term's own parameters, the
# generator's average, and the text encoder, which is asked in the step.
Reached = frozenset[str]
NOTHING: Reached = frozenset()
D: Reached = frozenset({"discriminator"})
D_WORDS: Reached = frozenset({"discriminator's adapter"})
G: Reached = frozenset({"generator", "generator's adapter"})
TRANSLATOR: Reached = frozenset({"generator"})  # it has no adapter
OWN: Reached = frozenset({"the term's own"})

# By the name of a loss: what switches it on, and what gets a gradient of it in the discriminator's step, in
# the generator's, and in a captioner's where there is one. Everything else must get none at all.
Row = tuple[Callable[[], dict[str, Any]], Reached, Reached, Reached]
TABLE: dict[str, Row] = {
    "loss": (lambda: {"adversarial": NonSaturating()}, D | D_WORDS, G, NOTHING),
    "loss, relativistic": (lambda: {"adversarial": Relativistic()}, D | D_WORDS, G, NOTHING),
    "r1": (lambda: {"penalties": [R1(1.0)]}, D | D_WORDS, NOTHING, NOTHING),
    "r2": (lambda: {"penalties": [R2(1.0)]}, D | D_WORDS, NOTHING, NOTHING),
    "r1, by finite differences": (
        lambda: {"penalties": [FiniteDifferenceR1(1.0)]},
        D | D_WORDS,
        NOTHING,
        NOTHING,
    ),
    "r2, by finite differences": (
        lambda: {"penalties": [FiniteDifferenceR2(1.0)]},
        D | D_WORDS,
        NOTHING,
        NOTHING,
    ),
    "wgan_gp": (lambda: {"penalties": [WassersteinPenalty(1.0)]}, D | D_WORDS, NOTHING, NOTHING),
    "ma_gp": (lambda: {"penalties": [MatchingAwarePenalty(2.0)]}, D | D_WORDS, NOTHING, NOTHING),
    "mismatch": (lambda: {"losses": [MismatchedCaptions()]}, D | D_WORDS, NOTHING, NOTHING),
    "contrastive": (lambda: {"losses": [ImageTextContrastive(8, 16, 8)]}, D | OWN, G, NOTHING),
    "feature_matching": (lambda: {"losses": [FeatureMatching()]}, NOTHING, G, NOTHING),
    "pixel_matching": (lambda: {"losses": [PixelMatching()]}, NOTHING, G, NOTHING),
    "perceptual_matching": (lambda: {"losses": [seen_by_lite0()]}, NOTHING, G, NOTHING),
    "energy": (lambda: {"losses": [compared_by_lite0()]}, NOTHING, G, NOTHING),
    "style": (lambda: {"losses": [style_by_lite0()]}, NOTHING, G, NOTHING),
    "alignment": (lambda: {"losses": [aligned_with_lite0()]}, D | OWN, NOTHING, NOTHING),
    "attributes": (lambda: {"losses": [OfOneKind(8, classes=20)]}, D | OWN, G, NOTHING),
    "mode_seeking": (lambda: {"losses": [ModeSeeking()]}, NOTHING, G, NOTHING),
    "latent_contrastive": (lambda: {"losses": [LatentContrastive(8, 8, 8)]}, NOTHING, G | OWN, NOTHING),
    "path_length": (lambda: {"losses": [PathLength(every=1)]}, NOTHING, G, NOTHING),
    "rotation": (lambda: {"losses": [tiny_task("rotation")]}, D | OWN, G, NOTHING),
    "reconstruction": (lambda: {"losses": [tiny_task("reconstruction")]}, D | OWN, G, NOTHING),
    "colorization": (lambda: {"losses": [tiny_task("colorization")]}, D | OWN, G, NOTHING),
    "instance": (lambda: {"losses": [tiny_task("instance")]}, D | OWN, G, NOTHING),
    "guidance": (lambda: {"losses": [ImageTextGuidance(TinyDual(), 1.0, 4)]}, NOTHING, G, NOTHING),
    "guidance, by a backbone": (lambda: {"losses": [guided_by_lite0()]}, OWN, G, NOTHING),
    "cycle": (lambda: translating(CycleConsistency()), NOTHING, TRANSLATOR, NOTHING),
    "style_reconstruction": (lambda: translating(StyleReconstruction()), NOTHING, TRANSLATOR, NOTHING),
    "style_diversity": (lambda: translating(StyleDiversity()), NOTHING, TRANSLATOR, NOTHING),
    "identity": (lambda: translating(IdentityTranslation()), NOTHING, TRANSLATOR, NOTHING),
    "interpolated_captions": (lambda: {"losses": [fitted_regression()]}, NOTHING, G, NOTHING),
    "caption_ce": (lambda: {"losses": [tiny_captioning()]}, NOTHING, G, OWN),
    "caption_ce, the contrast alone": (
        lambda: {"losses": [ContrastAlone(tiny_captioner(), adam(), generator_weight=1.0, contrast=1.0)]},
        NOTHING,
        G,
        OWN,
    ),
    "mismatch, one word": (
        lambda: {"losses": [OneWordAlone(similar=1.0)]},
        D | D_WORDS,
        NOTHING,
        NOTHING,
    ),
}
STEPS = ("discriminator", "generator", "captioner")
SIXTEEN = (Stage(16, kimg=1.0, batch_size=8),)


def translating(loss: LossTerm) -> dict[str, Any]:
    translator = Translator({8: 8, 16: 4}, text_dim=16, latent_dim=8, style_dim=8, blocks=1)
    return {"losses": [loss], "generator": translator}


def guided_by_lite0() -> BackboneGuidance:
    return BackboneGuidance(TimmBackbone(size=16, maps=[0]), text_dim=16, embed_dim=8)


def fitted_regression() -> InterpolatedCaptionLoss:
    return InterpolatedCaptionLoss(TinyBackbone(), 32, text_dim=16, seen_dim=4, share=1.0, from_resolution=8)


def seen_by_lite0() -> PerceptualMatching:
    return PerceptualMatching(TimmBackbone(size=16, maps=[0]))


class OfOneCaption(EnergyMatching):
    """As if all rows had the same caption: those of the test data differ."""

    def forward(self, discriminator: Any, adversarial: Any, inputs: LossInputs) -> Any:
        return super().forward(discriminator, adversarial, replace(inputs, captions=["a"] * len(inputs.text)))


class OfOneKind(AttributeClassifier):
    """As if all captions named a set and a kind."""

    def forward(self, discriminator: Any, adversarial: Any, inputs: LossInputs) -> Any:
        captions = ["bell, Tabler Icons, outline"] * len(inputs.text)
        return super().forward(discriminator, adversarial, replace(inputs, captions=captions))


class ContrastAlone(Captioning):
    """Without the cross-entropy."""

    def forward(self, discriminator: Any, adversarial: Any, inputs: LossInputs) -> Any:
        memory, captions = self._image_features(inputs)
        return self._contrast(memory, captions)


class OneWordAlone(MismatchedCaptions):
    """Fails if a caption of another image is asked for."""

    def forward(self, discriminator: Any, adversarial: Any, inputs: LossInputs) -> Any:
        encode = inputs.encode
        assert encode is not None

        def checked(captions: list[str]) -> Any:
            pairs = zip(captions, inputs.captions, strict=True)
            assert all(len(set(one.split()) ^ set(other.split())) == 2 for one, other in pairs)
            return encode(captions)

        return super().forward(discriminator, adversarial, replace(inputs, encode=checked))


def compared_by_lite0() -> EnergyMatching:
    return OfOneCaption(TimmBackbone(size=16, maps=[0]))


class StyleOfOneKind(StyleMatching):
    """As if all captions named a set and a kind, each with another subject."""

    def forward(self, discriminator: Any, adversarial: Any, inputs: LossInputs) -> Any:
        captions = [f"thing {i}, Tabler Icons, outline" for i in range(len(inputs.text))]
        return super().forward(discriminator, adversarial, replace(inputs, captions=captions))


def style_by_lite0() -> StyleMatching:
    return StyleOfOneKind(TimmBackbone(size=16, maps=[0]), single_images=True)


def aligned_with_lite0() -> FeatureAlignment:
    return FeatureAlignment(TimmBackbone(size=16, maps=[0]), image_dim=8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> FrozenTextEncoder:
    """A real text encoder, whose weights could receive a gradient."""
    made = FrozenTextEncoder(str(save_bert(tmp_path_factory.mktemp("bert"))))
    made.network.requires_grad_(True)
    return made


def parts_of(gan: TextToImageGAN) -> dict[str, list[nn.Parameter]]:
    """Everything trainable, by the names of the table."""
    parts = {}
    for name in ("generator", "discriminator"):
        network = getattr(gan, name)
        adapter = [] if isinstance(network, Translator) else list(network.text_adapter.parameters())
        taken = {id(parameter) for parameter in adapter}
        parts[name] = [p for p in network.parameters() if id(p) not in taken]
        parts[f"{name}'s adapter"] = adapter
    assert isinstance(gan.text_encoder, FrozenTextEncoder)
    return parts | {
        "the term's own": list(gan.losses.parameters()),
        "average": list(gan.ema.parameters()),
        "text encoder": list(gan.text_encoder.network.parameters()),
    }


class Reaches(Callback):
    """Records which parts have a gradient before each optimizer's step, by the step's name."""

    def __init__(self) -> None:
        self.steps: dict[str, Reached] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        reached = set()
        for name, parameters in parts_of(pl_module).items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            assert all(torch.isfinite(gradient).all() for gradient in gradients), name
            # Zeros would still move a weight through the optimizer's momentum, so they count as an error.
            assert not gradients or any(gradient.any() for gradient in gradients), f"{name}: only zeros"
            if gradients:
                reached.add(name)
        self.steps[STEPS[trainer.optimizers.index(optimizer)]] = frozenset(reached)


def reach(
    encoder: FrozenTextEncoder, loss: str, settings: dict[str, Any], **trainer: Any
) -> dict[str, Reached]:
    """One batch of the whole module, with the backward pass of this loss only."""
    torch.manual_seed(0)
    adapters = [{"text_adapter": TextAdapter(16, 8)} for _ in range(2)]
    drawer = {"generator": {**adapters[0], "text_attention_at": [8]}}
    gan = tiny_gan(**{**drawer, "discriminator": adapters[1], "text_encoder": encoder, **settings})
    for network in (gan.generator, gan.discriminator):
        awaken(network)  # else branches with zero weights would hide gradients
    whole, names = gan.backward_mean, {f"d_{loss}", f"g_{loss}", loss}

    def alone(terms: dict[str, Any], share: float) -> None:
        chosen = {name: term for name, term in terms.items() if name in names}
        if chosen:
            whole(chosen, share)

    gan.backward_mean = alone  # type: ignore[method-assign]
    reaches = Reaches()

    def ask_the_encoder(gan: TextToImageGAN, batch: Any) -> None:
        batch.text = None

    train(gan, 8, [AtEachBatch(before=ask_the_encoder), reaches], stages=SIXTEEN, **trainer)
    assert {"discriminator", "generator"} <= reaches.steps.keys()
    return {step: reaches.steps.get(step, NOTHING) for step in STEPS}


@pytest.mark.parametrize("name", TABLE)
def test_gradients_reach_only_the_intended_parameters(name: str, encoder: FrozenTextEncoder) -> None:
    settings, *expected = TABLE[name]

    reached = reach(encoder, name.partition(",")[0], settings())

    assert reached == dict(zip(STEPS, expected, strict=True))


def test_unintended_gradient_would_be_detected(encoder: FrozenTextEncoder) -> None:
    """A term that is applied in the generator step by mistake is detected."""
    reached = reach(encoder, "mismatch", {"losses": [MismatchedCaptions(1.0, generator_weight=1.0)]})

    assert reached["generator"] == G != TABLE["mismatch"][2]


def test_every_loss_term_is_in_the_table() -> None:
    """Every loss term of the package; fails if one is added without a row."""
    missing = {term.name for term in _every(LossTerm) if "name" in vars(term)} - TABLE.keys()
    missing |= {penalty.name for penalty in _every(Penalty) if "name" in vars(penalty)} - TABLE.keys()

    assert not missing, f"add rows for {sorted(missing)} to TABLE"


def _every(kind: type) -> set[Any]:
    """All classes of a kind that the package defines."""
    import_all_parts()
    found: set[Any] = set()
    left = [kind]
    while left:
        below: set[Any] = set(left.pop().__subclasses__()) - found
        found |= below
        left += below
    return {one for one in found if one.__module__.startswith("imagen_pl.")}
