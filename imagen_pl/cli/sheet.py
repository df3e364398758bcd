"""`imagen-pl sheet`: drafts for each prompt of a file, as a PDF or HTML sheet."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.cascade import Cascade, open_cascade
from imagen_pl.cli.counting import counted
from imagen_pl.cli.drawing import check_num_images, row_seeds
from imagen_pl.cli.options import (
    add_model_argument,
    add_sampling_options,
    add_upscaler_argument,
    sampling_options,
    verb_parser,
)
from imagen_pl.cli.prompt_files import Prompt, read_prompts
from imagen_pl.errors import UserError
from imagen_pl.inference.sampling_options import SamplingOptions

if TYPE_CHECKING:
    from PIL import Image

    from imagen_pl.imaging.pdf_sheet import Drafts

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
section {{ margin: 0 0 2rem; break-inside: avoid; }}
h2 {{ font-size: 1.1rem; margin: .3rem 0 0; }}
p {{ margin: 0; }}
.drafts {{ display: flex; flex-wrap: wrap; gap: .5rem; }}
figure {{ margin: 0; }}
figcaption {{ color: #555; font-size: 13px; }}
img {{ height: 128px; }}
.small {{ image-rendering: pixelated; }}
code {{ color: #555; font-size: 13px; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
{rows}
</body>
</html>
"""


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "sheet",
        description="Draw drafts for each prompt of a file, on a PDF or HTML sheet.",
        notes=(
            "A brief is .txt (one prompt per line), .csv or .jsonl (field `prompt`; a field `seed` takes "
            "precedence over --seed). Every other field is printed with its drafts, and so is the command "
            "that draws them again."
        ),
    )
    add_model_argument(parser)
    parser.add_argument("brief", help="a .txt, .csv or .jsonl file of prompts")
    parser.add_argument(
        "--num_images", type=int, default=4, metavar="N", help="drafts per prompt (default: 4)"
    )
    parser.add_argument(
        "--out", default="drafts.pdf", metavar="FILE", help=".pdf or .html (default: drafts.pdf)"
    )
    add_upscaler_argument(parser)
    add_sampling_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return sheet(make_parser().parse_args(words))


def sheet(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: an argument is out of range, the brief is missing or malformed, or matplotlib is missing.
    """
    out, n = Path(arguments.out), arguments.num_images
    if out.is_dir() or out.suffix.lower() not in (".pdf", ".html", ".htm"):
        raise UserError(f"--out {out} must be a .pdf or .html file")
    check_num_images(n)
    options = sampling_options(arguments)
    prompts = read_prompts(arguments.brief)
    seeds = row_seeds(prompts, options.seed, n)
    from imagen_pl.imaging.grids import size_text
    from imagen_pl.imaging.pdf_sheet import Drafts, write_pdf
    from imagen_pl.storage.atomic_files import atomic_write

    cascade = open_cascade(arguments, options)
    pairs = [(p.text, seed + k) for p, seed in zip(prompts, seeds, strict=True) for k in range(n)]
    pictures = list(cascade.draw(pairs))
    rows = [
        Drafts(
            prompt.text,
            pictures[i * n : (i + 1) * n],
            seed,
            _fields(prompt),
            _command(cascade, arguments.upscaler, prompt.text, seed, n),
        )
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    title = Path(arguments.brief).stem
    with atomic_write(out) as file:
        if out.suffix.lower() == ".pdf":
            write_pdf(file, title, rows)
        else:
            file.write(html_sheet(title, rows).encode())
    drafts, prompt_count = counted(len(pairs), "draft"), counted(len(rows), "prompt")
    print(f"{out}: {drafts} of {size_text(pictures[0].size)} for {prompt_count}")
    return 0


def _fields(prompt: Prompt) -> dict[str, str]:
    """A row's other fields as text; empty cells are left out."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in prompt.fields.items()
        if value is not None
    }
    return {name: text for name, text in texts.items() if text.strip()}


def _command(cascade: Cascade, upscaler: str | None, prompt: str, seed: int, num_images: int) -> str:
    """The command that draws a row's drafts again."""
    options = cascade.options
    words = ["imagen-pl", "sample", cascade.name, prompt]
    words += ["--num_images", str(num_images), "--seed", str(seed)]
    defaults: dict[str, object] = {**SamplingOptions().drawing()}
    for name, value in options.drawing().items():
        if value != defaults[name]:
            words += [f"--{name}", str(value)]
    if upscaler is not None:
        words += ["--upscaler", upscaler]
    return shlex.join(words)


def html_sheet(title: str, rows: Sequence[Drafts]) -> str:
    """A self-contained HTML page with the pictures embedded as PNG."""
    return _PAGE.format(title=html.escape(title), rows="\n".join(map(_section, rows)))


def _section(row: Drafts) -> str:
    figures = "".join(
        f'<figure><img{_small(picture)} alt="{html.escape(row.prompt)}" src="data:image/png;base64,'
        f'{_png(picture)}">'
        f"<figcaption>seed {row.seed + k}</figcaption></figure>"
        for k, picture in enumerate(row.pictures)
    )
    fields = "".join(f"<p>{html.escape(f'{name}: {text}')}</p>" for name, text in row.fields.items())
    return (
        f'<section><div class="drafts">{figures}</div><h2>{html.escape(row.prompt)}</h2>{fields}'
        f"<code>{html.escape(row.command)}</code></section>"
    )


def _small(picture: Image.Image) -> str:
    """Pictures of fewer pixels than are shown are not blurred."""
    return ' class="small"' if picture.height < 128 else ""


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
