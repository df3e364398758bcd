"""Translates pictures to other domains with a trained Translator (StarGAN v2, arXiv:1912.01865).

Axes: b batch, r pixels.
"""

from __future__ import annotations

from difflib import get_close_matches

import torch
from jaxtyping import Float
from torch import Tensor

from imagen_pl.errors import UserError
from imagen_pl.inference.pipeline import TextToImage
from imagen_pl.models.generators.base import Generator
from imagen_pl.models.generators.translator import Translator
from imagen_pl.models.latents import latents

Images = Float[Tensor, "b 3 r r"]


def translatable(generator: Generator) -> Translator:
    """The generator. Raises UserError if it is no Translator."""
    if not isinstance(generator, Translator):
        raise UserError(
            f"this model's generator is a {type(generator).__name__}, which does not translate pictures: "
            "train one with configs/experiment/translator.yaml"
        )
    return generator


@torch.inference_mode()
def translated(
    model: TextToImage, images: Images, domain: str, seed: int = 0, reference: Images | None = None
) -> Images:
    """Images in another domain, -1 to 1.

    Args:
        model: a model whose generator is a Translator.
        images: the pictures, -1 to 1, at the model's resolution.
        domain: the domain's caption, as in training.
        seed: of the latent, from which the style comes; all images get the same.
        reference: one picture of the domain, whose style they get instead; `seed` then has no effect.

    Raises:
        UserError: the generator is no Translator, the domain is none of the classes of a model with class
            labels, or the model has one style a domain and there is a reference.
    """
    generator, device = translatable(model.generator), model.device
    if reference is not None and generator.style_from == "domain":
        raise UserError("this model has one style for each domain: a reference picture has no effect")
    text = model.text_encoder.encode([domain], device)
    if reference is None:
        style = generator.style_of_latent(latents([0], seed, generator.latent_dim).to(device), text)
    else:
        style = generator.style_of_image(reference.to(device), text)
    parts = images.to(device).split(model.at_once)
    return torch.cat([generator.translate(part, style.expand(len(part), -1)) for part in parts]).clamp(-1, 1)


def unknown_domain(model: TextToImage, domain: str) -> str | None:
    """One line if a domain is none of those that the model was trained on, as far as it knows; else None.

    None for a model with class labels, whose encoder refuses other names.
    """
    if model.text_encoder.classes is not None:
        return None
    known = list(dict.fromkeys(model.description.get("captions") or []))
    if not known or domain in known:
        return None
    near = get_close_matches(domain, known, n=3, cutoff=0.4) or known[:3]
    return f"{domain!r} is not among the domains of this model, so its style is a guess: try {_listed(near)}"


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names))
