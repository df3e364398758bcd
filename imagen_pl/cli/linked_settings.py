"""Sizes that follow from other settings, so that a recipe gives each only once.

`text_dim` is the text encoder's, `image_dim` the discriminator's `final_dim` or `width`, `map_channels` its
channels at `map_resolution`, `image_resolution` the discriminator's largest. `aspect_ratio` and
`image_channels` are those of the data: `data.aspect_ratio`, and four channels with `data.alpha`. With an
autoencoder, `image_channels` is its `latent_channels`, and `downsampling` is its own. A size that is set to
another value is kept, and is reported if it does not fit.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser, Namespace, dict_to_namespace

from imagen_pl.errors import UserError
from imagen_pl.models.autoencoders.base import Autoencoder
from imagen_pl.models.text.encoder import TextEncoder


def link_sizes(model: Namespace, data: Namespace) -> None:
    """Set every linked size in a model's configuration that still has its default.

    Args:
        model: the section `model`, changed in place.
        data: the section `data`.
    """
    text_dim = _text_dim(model.text_encoder)
    autoencoder = _autoencoder(model.generator)
    discriminator = _first_discriminator(model.discriminator)
    channels: dict[int, int] = discriminator.get("channels") or {}
    for class_path, arguments in _classes(model):
        map_resolution = arguments.get("map_resolution") or 0
        linked = {
            "text_dim": text_dim,
            "image_dim": discriminator.get("final_dim") or discriminator.get("width"),
            "map_channels": channels.get(map_resolution),
            "finer_channels": channels.get(2 * map_resolution),
            "image_resolution": max(channels, default=None),
            "aspect_ratio": data.aspect_ratio,
            "image_channels": 4 if data.alpha else None,
        }
        if autoencoder is not None:
            linked["image_channels"] = autoencoder.latent_channels
            linked["downsampling"] = autoencoder.downsampling
        defaults = _defaults(class_path)
        for name, value in linked.items():
            if value is not None and name in arguments and arguments[name] == defaults.get(name):
                arguments[name] = value


def _text_dim(text_encoder: Namespace) -> int | None:
    """The size of the vectors of a configured text encoder; None if it cannot be constructed."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TextEncoder, "text_encoder")
    try:
        made = parser.instantiate(parser.parse_object({"text_encoder": text_encoder.clone()}))
    except (UserError, ValueError):
        return None  # reported with its reason when the model is built
    dim: int = made.text_encoder.dim
    return dim


def _autoencoder(generator: Namespace) -> Autoencoder | None:
    """The autoencoder of a configured generator of latents; None without, or if it cannot be constructed.

    What it needs to be built without its folder is set in the configuration.
    """
    described = (generator.get("init_args") or Namespace()).get("autoencoder")
    if described is None:
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Autoencoder, "autoencoder")
    try:
        made = parser.instantiate(parser.parse_object({"autoencoder": described.clone()})).autoencoder
    except (UserError, ValueError):
        return None  # reported with its reason when the model is built
    assert isinstance(made, Autoencoder)
    for name, value in made.arguments_to_keep().items():
        described.init_args[name] = dict_to_namespace(value) if isinstance(value, dict) else value
    return made


def _first_discriminator(discriminator: Namespace) -> Namespace:
    """The arguments of the discriminator whose features the loss terms read: in a joint one, the first."""
    arguments: Namespace = discriminator.get("init_args") or Namespace()
    if parts := arguments.get("discriminators"):
        return _first_discriminator(parts[0])
    if wrapped := arguments.get("discriminator"):
        return _first_discriminator(wrapped)
    return arguments


def _classes(value: Any) -> Iterator[tuple[str, Namespace]]:
    """Every class configured inside a value: its path and its arguments."""
    if isinstance(value, list):
        for item in value:
            yield from _classes(item)
    elif isinstance(value, Namespace):
        arguments = value.get("init_args")
        if "class_path" in value and isinstance(arguments, Namespace):
            yield value["class_path"], arguments
        for item in vars(value).values():
            yield from _classes(item)


def _defaults(class_path: str) -> dict[str, Any]:
    """The default values of a class's arguments."""
    module, _, name = class_path.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    return {name: parameter.default for name, parameter in parameters.items()}
