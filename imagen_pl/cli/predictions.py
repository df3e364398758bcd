"""The work of `imagen-pl predict`: images for prompts, in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from imagen_pl.cli.open_model import check_draws
from imagen_pl.cli.prompt_files import Prompt, read_prompts
from imagen_pl.data.datamodule import CaptionedImages
from imagen_pl.errors import UserError
from imagen_pl.imaging.grids import save_picture
from imagen_pl.inference.pipeline import load


@dataclass
class Predicting:
    """Draws one image for each prompt.

    Args:
        prompts: file of prompts; None takes the captions of the held-out images.
        out: folder; None takes predictions/ in the run's folder.
        seed: of the first picture; each later one has the next.
    """

    prompts: Path | None = None
    out: Path | None = None
    seed: int = 0

    def draw(self, checkpoint: Path, data: CaptionedImages, out: Path) -> int:
        """Write a PNG for each prompt and a metadata.jsonl, so that the folder is itself a data set.

        Returns:
            The number of images drawn.

        Raises:
            UserError: the folder holds a metadata.jsonl already, or there is nothing to draw for.
        """
        if (out / "metadata.jsonl").exists():
            raise UserError(f"{out} already contains a metadata.jsonl: name another folder with --out")
        if self.prompts is None:
            prompts = [Prompt(caption, i) for i, caption in enumerate(data.held_out_captions(), 1)]
        else:
            prompts = read_prompts(self.prompts)
        if not prompts:
            raise UserError("the data has no held-out images to draw for: name a file with --prompts")
        seeds = [self.seed + i if p.seed is None else p.seed for i, p in enumerate(prompts)]
        pairs = [(prompt.text, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        model = load(checkpoint)
        check_draws(model, str(checkpoint))
        out.mkdir(parents=True, exist_ok=True)
        with (out / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
            for i, picture in enumerate(model.draw(pairs)):
                name = f"{i:06d}.png"
                about = {"prompt": pairs[i][0], "seed": pairs[i][1]}
                save_picture(picture, out / name, {**about, "model": str(checkpoint)})
                row = {"file_name": name, **about, **prompts[i].fields}
                metadata.write(json.dumps(row, ensure_ascii=False) + "\n")
        return len(pairs)
