"""`imagen-pl sheet`: drafts for each prompt of a brief, on a sheet to print or to send."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from imagen_pl.cli.options import add_drawing_options, add_model_argument, verb_parser
from imagen_pl.cli.prompt_files import Prompt, read_prompts
from imagen_pl.cli.sample import check_drawing, drawing_options, row_seeds, with_progress
from imagen_pl.errors import UserError
from imagen_pl.imaging.pdf_sheet import Drafts, write_pdf
from imagen_pl.inference.pipeline import load
from imagen_pl.storage.atomic_files import atomic_write

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
img {{ width: 128px; height: 128px; image-rendering: pixelated; }}
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
        description="Draw drafts for each prompt of a brief, on a sheet to print or to send.",
        notes=(
            "A brief is .txt (one a line), .csv or .jsonl (field `prompt`; a field `seed` overrules --seed). "
            "Every other field is printed with its drafts, and so is the command that draws them again."
        ),
    )
    add_model_argument(parser)
    parser.add_argument("brief", help="a .txt, .csv or .jsonl file of prompts")
    parser.add_argument("--num_images", type=int, default=4, metavar="N", help="drafts each (default: 4)")
    parser.add_argument(
        "--out", default="drafts.pdf", metavar="FILE", help=".pdf or .html (default: drafts.pdf)"
    )
    add_drawing_options(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and do what it says."""
    return sheet(make_parser().parse_args(words))


def sheet(arguments: argparse.Namespace) -> int:
    """Do what the parsed command line says.

    Raises:
        UserError: the arguments do not go together, the brief is missing or bad, or matplotlib is missing.
    """
    out, n = Path(arguments.out), arguments.num_images
    if out.is_dir() or out.suffix.lower() not in (".pdf", ".html", ".htm"):
        raise UserError(f"--out {out} must be a .pdf or .html file")
    check_drawing(arguments)
    prompts = read_prompts(arguments.brief)
    seeds = row_seeds(prompts, arguments.seed, n)
    model = load(arguments.model, arguments.device)
    pairs = [(p.text, seed + k) for p, seed in zip(prompts, seeds, strict=True) for k in range(n)]
    drawn = list(with_progress(model.draw(pairs, **drawing_options(arguments)), len(pairs)))
    rows = [
        Drafts(
            prompt.text,
            drawn[i * n : (i + 1) * n],
            seed,
            _fields(prompt),
            _command(arguments, prompt.text, seed),
        )
        for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    title = Path(arguments.brief).stem
    with atomic_write(out) as file:
        if out.suffix.lower() == ".pdf":
            write_pdf(file, title, rows)
        else:
            file.write(make_page(title, rows).encode())
    print(f"{out}: {len(pairs):,} drafts of {model.resolution} px for {len(rows):,} prompts")
    return 0


def _fields(prompt: Prompt) -> dict[str, str]:
    """What else a row says, as text; empty cells left out."""
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in prompt.fields.items()
        if value is not None
    }
    return {name: text for name, text in texts.items() if text.strip()}


def _command(arguments: argparse.Namespace, prompt: str, seed: int) -> str:
    """What draws a row's drafts again."""
    words = ["imagen-pl", "sample", arguments.model, prompt, "--num_images", str(arguments.num_images)]
    words += ["--seed", str(seed)]
    for name, usual in (("truncation", 1), ("guidance", 1), ("refine", 0)):
        if (said := getattr(arguments, name)) != usual:
            words += [f"--{name}", str(said)]
    return shlex.join(words)


def make_page(title: str, rows: Sequence[Drafts]) -> str:
    """An HTML page, complete in itself: the pictures are inside, pixel for pixel."""
    return _PAGE.format(title=html.escape(title), rows="\n".join(map(_section, rows)))


def _section(row: Drafts) -> str:
    figures = "".join(
        f'<figure><img alt="{html.escape(row.prompt)}" src="data:image/png;base64,{_png(picture)}">'
        f"<figcaption>seed {row.seed + k}</figcaption></figure>"
        for k, picture in enumerate(row.pictures)
    )
    fields = "".join(f"<p>{html.escape(f'{name}: {text}')}</p>" for name, text in row.fields.items())
    return (
        f'<section><div class="drafts">{figures}</div><h2>{html.escape(row.prompt)}</h2>{fields}'
        f"<code>{html.escape(row.command)}</code></section>"
    )


def _png(picture: Image.Image) -> str:
    made = io.BytesIO()
    picture.save(made, "PNG")
    return base64.b64encode(made.getvalue()).decode()
