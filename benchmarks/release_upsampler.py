"""Make the upsampler that ships with the package, and its card, from a run and its scores.

    python -m benchmarks.upsampler runs/upsampler --small icons64/ --large icons256/ \
        --peers PYTHON --out benchmarks/results/upsampler.json
    python -m benchmarks.release_upsampler runs/upsampler --icons icons256/ \
        --scores benchmarks/results/upsampler.json

Writes imagen_pl/released/upsampler/: the generator's average in half precision, config.json, samples.png and
README.md, the card, with the scores and the credits of the icons.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.machine import describe_machine
from benchmarks.release import trained_by
from benchmarks.release_icons import forget_folder
from benchmarks.upsampler import UpscalingScore, table
from imagen_pl import load
from imagen_pl.inference.export import export_safetensors
from imagen_pl.storage.model_paths import RELEASED, WEIGHTS

LARGEST_MB = 15
_CARD = """\
---
license: mit
library_name: imagen_pl
pipeline_tag: image-to-image
tags:
- gan
- super-resolution
- pytorch-lightning
---

# upsampler

Enlarges icons and emoji four times, from 64 to 256 px; trained with imagen_pl {version}.

![Held-out icons and emoji: given, by bicubic, by the peers, by this model, and drawn at 256 px](samples.png)

```
imagen-pl upscale upsampler bell.png --prompt "bell, outline"
```

`imagen-pl sample icons "bell, outline"` and `sample emoji` use it by default.

## Scores

Held-out subjects, vectors drawn at 64 and at 256 px, {pictures} of each kind. PSNR and SSIM are of RGB and of
brightness (Y); distance is LPIPS without learnt weights in features of EfficientNet-Lite1, FD the Fréchet
distance in the same network's features. Real-ESRGAN and waifu2x were made for photographs and drawings, and
not for this ground.

{table}

`{command}`, commit {commit}, {machine}.

## How it was made

```
{commands}
```

{took}. {images_seen:,} squares of 128 px.

## Limits

It has seen icons and emoji alone, and no photographs, text or compressed pictures. It draws one result: what
a small picture does not have is guessed, and not sampled. Thin lines that are lost at 64 px stay lost.

## Data

{credits}
"""


def card(
    description: dict[str, Any], scores: dict[str, Any], commands: list[str], took: str, credit: str
) -> str:
    """The card, as Markdown.

    Args:
        description: content of the release's config.json.
        scores: what benchmarks.upsampler wrote.
        commands: that trained it.
        took: how long it took.
        credit: ATTRIBUTION.md of the icons without its heading.
    """
    return _CARD.format(
        version=description["imagen_pl"],
        images_seen=description["images_seen"],
        pictures=scores["pictures"],
        table=table([UpscalingScore(**row) for row in scores["scores"]]),
        command=scores["command"],
        commit=scores["git"]["commit"][:7],
        machine=describe_machine(),
        commands="\n".join(commands),
        took=took,
        credits=credit,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--icons", type=Path, required=True, help="the icons that it was trained on")
    parser.add_argument(
        "--scores", type=Path, required=True, help="JSON of benchmarks.upsampler, of this run"
    )
    parser.add_argument("--out", type=Path, default=RELEASED / "upsampler", help="a new folder")
    o = parser.parse_args()
    scores = json.loads(o.scores.read_text(encoding="utf-8"))
    if str(o.run) not in scores["command"].split():
        raise SystemExit(f"{o.scores} has the scores of another model: {scores['command']}")
    commands, took = trained_by(o.run)
    export_safetensors(load(o.run, "cpu"), o.out, half=True)
    size = (o.out / WEIGHTS).stat().st_size / 1e6
    if size > LARGEST_MB:
        shutil.rmtree(o.out)
        raise SystemExit(f"{o.run} has {size:.0f} MB of weights: {LARGEST_MB} at most may ship")
    forget_folder(o.out)
    Image.open(o.scores.with_suffix(".png")).convert("RGB").quantize(128).save(o.out / "samples.png")
    description = json.loads((o.out / "config.json").read_text(encoding="utf-8"))
    _heading, _, credit = (o.icons / "ATTRIBUTION.md").read_text(encoding="utf-8").partition("\n\n")
    text = card(description, scores, commands, took, credit.strip())
    (o.out / "README.md").write_text(text, encoding="utf-8")
    print(f"{o.out}: {size:.1f} MB")


if __name__ == "__main__":
    main()
