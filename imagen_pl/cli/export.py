"""`imagen-pl export`: write a model for other programs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from imagen_pl.cli.open_model import open_model
from imagen_pl.cli.options import add_discriminator_argument, add_model_argument, verb_parser
from imagen_pl.errors import UserError
from imagen_pl.storage.model_paths import model_file


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "export",
        description="Write a model for other programs, and check that it gives the same pictures.",
        notes=(
            "onnx and torch-export contain the generator, the text encoder, the tokenizer, and a README.md "
            "with code that draws. They draw without refinement (--refine 0 of `imagen-pl sample`)."
        ),
    )
    add_model_argument(parser)
    parser.add_argument(
        "--to", choices=("safetensors", "onnx", "torch-export"), required=True, help="file format"
    )
    parser.add_argument("--half", action="store_true", help="store safetensors in float16, at half the size")
    add_discriminator_argument(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return export(make_parser().parse_args(words))


def export(arguments: argparse.Namespace) -> int:
    """Run the verb.

    Raises:
        UserError: the folder is not empty, the model cannot be exported in this format, a package is missing,
            or the exported model draws other images.
    """
    out = Path(arguments.out)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty: name another folder")
    if arguments.with_discriminator and arguments.to != "safetensors":
        raise UserError("--with-discriminator goes with --to safetensors only")
    file = model_file(arguments.model, arguments.with_discriminator)
    model = open_model(str(file), device="cpu")
    from imagen_pl.inference.export import export_graphs, export_safetensors

    if arguments.to == "safetensors":
        gap = export_safetensors(model, out, arguments.half, arguments.with_discriminator)
    else:
        if arguments.half:
            raise UserError("--half goes with --to safetensors alone")
        gap = export_graphs(model, out, arguments.to)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6
    print(f"{out}: {', '.join(sorted(f.name for f in out.iterdir()))}, {size:.1f} MB")
    print(f"drawn again from these files, images differ by {gap:.1e} at most, of -1 to 1")
    if arguments.to != "safetensors" and model.refine_steps(None):
        print("note: these files draw without refinement, like `imagen-pl sample --refine 0`")
    return 0
