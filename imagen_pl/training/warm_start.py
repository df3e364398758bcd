"""Initialising networks with the weights of an earlier training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from imagen_pl.models.discriminators.base import Discriminator
from imagen_pl.models.generators.base import Generator
from imagen_pl.storage.checkpoint_io import check_same_tensors, read_checkpoint
from imagen_pl.storage.model_files import StoredDiscriminator, average_of, read_discriminator, read_release
from imagen_pl.storage.model_paths import WEIGHTS, model_file


class Initialised(NamedTuple):
    """What was copied from an earlier training.

    blocks: resolutions of the generator's copied blocks, px.
    networks: which networks were initialised, as text for the user, with the reason if it is only one.
    teacher_networks: names of the frozen networks that the earlier training used.
    """

    blocks: list[int]
    networks: str
    teacher_networks: list[str]


def initialise(generator: Generator, discriminator: Discriminator, path: str | Path) -> Initialised:
    """Copy the weights that two networks share, by name, with those of an earlier training.

    The generator takes the earlier generator's moving average. The discriminator takes the earlier
    discriminator's weights if the file has one of the same class: a checkpoint has one, a release may.

    Of each network these are the parameters outside the resolutions' blocks, and the blocks of the
    resolutions that both have and that the earlier training had grown to. All others keep their weights.

    Args:
        generator: the generator to change.
        discriminator: the discriminator to change.
        path: the earlier run, a checkpoint or a release.

    Raises:
        UserError: a file cannot be read, or shared parameters differ in shape. No weight is changed then.
    """
    file = model_file(path, with_discriminator=True)
    is_release = file.name == WEIGHTS
    if is_release:
        about, weights = read_release(file.parent)
        grown_to = about["resolution"]
    else:
        about = read_checkpoint(file, mmap=True)
        weights, grown_to = average_of(about, file), about["growth_resolution"]
    to_generator = _shared_weights(
        generator,
        weights,
        grown_to,
        file,
        f"{type(generator).__name__}.init_from copies the blocks that both generators have: use the settings "
        f"of the stored generator up to {grown_to} px.",
    )
    stored = read_discriminator(file)
    to_discriminator: dict[str, Tensor] = {}
    if stored is None:
        networks = f"generator only: this {'release' if is_release else 'checkpoint'} has no discriminator"
    elif other := _other_class(discriminator, stored):
        networks = (
            f"generator only: the stored discriminator is a {other}, this one a {_class_path(discriminator)}"
        )
    else:
        networks = "generator and discriminator"
        to_discriminator = _shared_weights(
            discriminator,
            stored.weights,
            grown_to,
            file,
            f"Use the settings of the stored discriminator up to {grown_to} px, or start from the generator "
            f"only: `imagen-pl export {path} --to safetensors --out DIR`, and init_from DIR.",
        )
    generator.load_state_dict({**generator.state_dict(), **to_generator})
    discriminator.load_state_dict({**discriminator.state_dict(), **to_discriminator})
    blocks = [resolution for resolution in generator.resolutions if resolution <= grown_to]
    return Initialised(blocks, networks, list(about.get("teacher_networks", [])))


def _shared_weights(
    network: Generator | Discriminator,
    weights: Mapping[str, Tensor],
    grown_to: int,
    file: Path,
    advice: str,
) -> dict[str, Tensor]:
    """The weights to copy into a network.

    Raises:
        UserError: the network lacks one of them, or has it in another shape.
    """
    found = {name: weights[name] for name in _shared_names(network, weights, grown_to)}
    own = network.state_dict()
    check_same_tensors({name: own[name] for name in own if name in found}, found, file, advice)
    return found


def _shared_names(
    network: Generator | Discriminator, weights: Mapping[str, Tensor], grown_to: int
) -> list[str]:
    """Names in `weights`, without blocks that the network lacks or that the earlier one had not grown to."""
    resolutions = {id(block): resolution for resolution, block in network.blocks().items()}
    blocks = {name: resolutions[id(m)] for name, m in network.named_modules() if id(m) in resolutions}
    trained = tuple(f"{name}." for name, resolution in blocks.items() if resolution <= grown_to)
    parents = tuple({f"{name.rpartition('.')[0]}." for name in blocks})
    return [name for name in weights if name.startswith(trained) or not name.startswith(parents)]


def _other_class(discriminator: Discriminator, stored: StoredDiscriminator) -> str | None:
    """The stored discriminator's class path if it is of another class; None if it is the same or unknown."""
    if stored.description is None:
        return None
    path: str = stored.description["class_path"]
    module, _, name = path.rpartition(".")
    # The path may name a module that re-exports the class. It is not imported: this run's class is already.
    return None if getattr(sys.modules.get(module), name, None) is type(discriminator) else path


def _class_path(network: Discriminator) -> str:
    return f"{type(network).__module__}.{type(network).__qualname__}"
