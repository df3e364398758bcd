"""`imagen-pl variants`: a subject in every style, to choose from."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from imagen_pl.data.emoji import STYLES
from imagen_pl.errors import UserError
from imagen_pl.inference import TextToImage, load
from imagen_pl.pictures import labelled_grid, save_picture
from imagen_pl.sampling import check_drawing, check_picture, facts, how_drawn, watched


def variants(arguments: argparse.Namespace) -> int:
    """Do what the parsed command line says.

    Raises:
        UserError: the arguments do not go together, or the model's styles are not known.
    """
    out, n = Path(arguments.out), arguments.num_images
    check_picture(out)
    check_drawing(arguments)
    for part in ("{subject}", "{style}"):
        if part not in arguments.wording:
            raise UserError(f'--wording "{arguments.wording}" lacks {part}')
    model = load(arguments.model, arguments.device)
    styles = arguments.styles or _styles_of(model)
    prompts = [
        # Not format(): a subject may hold braces, and so may the wording.
        arguments.wording.replace("{style}", style).replace("{subject}", subject)
        for subject in arguments.subject
        for style in styles
    ]
    seeds = range(arguments.seed, arguments.seed + n)
    pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
    pictures = list(watched(model.draw(pairs, **how_drawn(arguments)), len(pairs)))
    labels, side = [f"seed {seed}" for seed in seeds], math.ceil(math.sqrt(n))
    cells = [labelled_grid(pictures[i : i + n], labels, side) for i in range(0, len(pictures), n)]
    grid = labelled_grid(cells, prompts, columns=len(styles))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_picture(grid, out, {"prompt": "\n".join(prompts), "seed": arguments.seed, **facts(model, arguments)})
    print(f"{out}: a row a subject; columns {', '.join(styles)}; seeds from {arguments.seed}")
    return 0


def _styles_of(model: TextToImage) -> list[str]:
    """The hands whose emoji the model was trained on."""
    data = model.description.get("data") or {}
    if not str(data.get("class_path")).endswith("EmojiSource"):
        raise UserError("name the styles with --styles: they are known of models trained on the emoji alone")
    return (data.get("init_args") or {}).get("styles") or list(STYLES)
