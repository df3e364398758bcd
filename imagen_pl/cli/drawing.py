"""What the verbs that draw share: checks of arguments, progress bars, and the metadata of image files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagen_pl
from imagen_pl.cli.prompt_files import Prompt
from imagen_pl.errors import UserError
from imagen_pl.inference.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from PIL import Image

    from imagen_pl.inference.pipeline import TextToImage

PICTURE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")


def check_num_images(num_images: int) -> None:
    """Raise UserError if --num_images is out of range."""
    if num_images < 1:
        raise UserError(f"--num_images {num_images} must be 1 or more")


def check_seed(seed: int) -> None:
    """Raise UserError if --seed is out of the range of torch's generators."""
    if not -(2**63) <= seed < 2**64:
        raise UserError(f"--seed {seed} is out of range: it must be less than 2^64")


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise UserError if a prompt is empty: it would draw something at random."""
    for place, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            which = f"prompt {place} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
            raise UserError(f'{which} is empty: write what to draw, for example "a red heart"')


def check_picture_path(out: Path, unless: str = "") -> None:
    """Raise UserError if --out is not a picture file."""
    if out.is_dir() or out.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"--out {out} must be a .png, .webp or .jpg file{', ' + unless if unless else ''}")


def draw_with_progress(
    model: TextToImage, pairs: Sequence[tuple[str, int]], options: SamplingOptions
) -> Iterator[Image.Image]:
    """Pictures for pairs of a prompt and a seed, with a progress bar."""
    return with_refinement_progress(
        lambda on_step: model.draw(pairs, **options.drawing(), on_step=on_step),
        len(pairs),
        model.refine_steps(options.refine),
        " pictures",
    )


def with_refinement_progress(
    draw: Callable[[Callable[[int], object] | None], Iterator[Image.Image]], count: int, steps: int, unit: str
) -> Iterator[Image.Image]:
    """Yield drawn pictures while a progress bar counts them, or their refinement steps if they are refined.

    A batch of refined pictures takes long and is finished all at once, so a bar that counted pictures would
    be wrong about the time left.

    Args:
        draw: draws the pictures; its argument is called after each refinement step with the batch size.
        count: number of pictures.
        steps: refinement steps of each.
        unit: of the count, with a space before it.
    """
    from imagen_pl.data.progress import progress_bar, with_progress

    if not steps:
        yield from with_progress(draw(None), total=count, unit=unit)
        return
    noun = unit.removesuffix("s") if count == 1 else unit
    with progress_bar(f"refining {count:,}{noun}", count * steps, " steps") as bar:
        yield from draw(bar.update)


def row_seeds(prompts: Sequence[Prompt], seed: int, num_images: int) -> list[int]:
    """The first seed of each row: its own, or one that no other row uses, so that latents differ."""
    return [seed + row * num_images if p.seed is None else p.seed for row, p in enumerate(prompts)]


def provenance(model: TextToImage, name: str, options: SamplingOptions) -> dict[str, Any]:
    """How a picture was drawn, besides its prompt and seed; stored in its file.

    Args:
        model: the model that drew it.
        name: of the model, as the user gave it.
        options: how it was sampled.
    """
    return {
        "model": name,
        "images_seen": model.description.get("images_seen", ""),
        **options.drawing(),
        "refine": model.refine_steps(options.refine),
        "software": f"imagen_pl {imagen_pl.__version__}",
    }
