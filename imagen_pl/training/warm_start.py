"""Starting a generator from the weights of another trained generator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from imagen_pl.models.generators.base import Generator
from imagen_pl.storage.checkpoint_io import check_same_tensors, read_checkpoint
from imagen_pl.storage.model_files import average_of, read_release
from imagen_pl.storage.model_paths import model_file


class Stem(NamedTuple):
    """What was copied from another generator.

    blocks: resolutions of the copied blocks, px.
    teacher_networks: names of the frozen networks that the other generator was trained with.
    """

    blocks: list[int]
    teacher_networks: list[str]


def load_stem(generator: Generator, path: str | Path) -> Stem:
    """Copy, by name, the weights that this generator shares with the moving average of another one.

    These are the parameters outside the resolutions' blocks, and the blocks of the resolutions that both have
    and that the other had grown to. All other parameters keep their weights.

    Args:
        generator: the generator to change.
        path: the other generator's run, checkpoint or release.

    Raises:
        UserError: the file cannot be read, or shared parameters differ in shape.
    """
    file = model_file(path)
    if file.name == "model.safetensors":
        about, weights = read_release(file.parent)
        grown_to = about["resolution"]
    else:
        about = read_checkpoint(file, mmap=True)
        weights, grown_to = average_of(about, file), about["growth_resolution"]
    found = {name: weights[name] for name in _shared_names(generator, weights, grown_to)}
    own = generator.state_dict()
    advice = (
        f"{type(generator).__name__}.init_from takes over what both have: give this generator the other's "
        f"settings up to {grown_to} px."
    )
    check_same_tensors({name: own[name] for name in own if name in found}, found, file, advice)
    generator.load_state_dict({**own, **found})
    blocks = [resolution for resolution in generator.resolutions if resolution <= grown_to]
    return Stem(blocks, list(about.get("teacher_networks", [])))


def _shared_names(generator: Generator, weights: Mapping[str, Tensor], grown_to: int) -> list[str]:
    """Names in `weights`, without blocks that the generator lacks or that the other had not grown to."""
    modules = {id(block): resolution for resolution, block in generator.blocks().items()}
    places = {name: modules[id(m)] for name, m in generator.named_modules() if id(m) in modules}
    taken = tuple(f"{name}." for name, resolution in places.items() if resolution <= grown_to)
    homes = tuple({f"{name.rpartition('.')[0]}." for name in places})
    return [name for name in weights if name.startswith(taken) or not name.startswith(homes)]
