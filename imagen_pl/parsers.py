"""What the verbs that do not train take on the command line; it imports nothing heavy."""

from __future__ import annotations

import argparse

from imagen_pl.verb_help import verb_parser


def sample_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "sample",
        description="Draw pictures for prompts. A picture is decided by its prompt and its seed.",
        notes=(
            "A file of prompts is .txt (one a line), .csv or .jsonl (field `prompt`; a field `seed` "
            "overrules --seed). --out DIR then gets one PNG a prompt and a metadata.jsonl with file_name, "
            "prompt, seed and every other field of the row, so that DIR is itself a data set to train on."
        ),
    )
    _add_model(parser)
    parser.add_argument("prompt", nargs="*", help="what to draw; a row of the grid each")
    parser.add_argument("--prompts", metavar="FILE", help="read the prompts from a .txt, .csv or .jsonl file")
    parser.add_argument("--num_images", type=int, default=1, metavar="N", help="pictures each (default: 1)")
    parser.add_argument(
        "--out", metavar="PATH", help="the grid's file (default: sample.png); with --prompts, a folder"
    )
    parser.add_argument(
        "--format", choices=("png", "webp", "jpg"), default="png", help="of single pictures (default: png)"
    )
    parser.add_argument("--plain", action="store_true", help="leave the prompts out of the grid")
    parser.add_argument(
        "--transparent",
        action="store_true",
        help="cut the pictures out of their white background; PNG or WebP",
    )
    parser.add_argument("--singles", metavar="DIR", help="write each picture to a file here as well")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a picture: file, prompt, seed"
    )
    _add_drawing(parser)
    return parser


def sheet_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "sheet",
        description="Draw drafts for each prompt of a brief, on a sheet to print or to send.",
        notes=(
            "A brief is .txt (one a line), .csv or .jsonl (field `prompt`; a field `seed` overrules --seed). "
            "Every other field is printed with its drafts, and so is the command that draws them again."
        ),
    )
    _add_model(parser)
    parser.add_argument("brief", help="a .txt, .csv or .jsonl file of prompts")
    parser.add_argument("--num_images", type=int, default=4, metavar="N", help="drafts each (default: 4)")
    parser.add_argument(
        "--out", default="drafts.pdf", metavar="FILE", help=".pdf or .html (default: drafts.pdf)"
    )
    _add_drawing(parser)
    return parser


def variants_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "variants",
        description="Draw a subject in every style, side by side, to choose from.",
        notes="Pictures of one seed share a latent, whatever the style.",
    )
    _add_model(parser)
    parser.add_argument("subject", nargs="+", help='as "cupcake"; a row each')
    parser.add_argument(
        "--styles",
        nargs="+",
        metavar="STYLE",
        help="a column each (default: fluent, noto and twemoji, for a model trained on the emoji)",
    )
    parser.add_argument(
        "--wording",
        default="{subject}, {style} style",
        metavar="TEXT",
        help='how a prompt is made of both (default: "{subject}, {style} style")',
    )
    parser.add_argument("--num_images", type=int, default=4, metavar="N", help="of each (default: 4)")
    parser.add_argument(
        "--out", default="variants.png", metavar="FILE", help=".png, .webp or .jpg (default: variants.png)"
    )
    _add_drawing(parser)
    return parser


def interpolate_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "interpolate",
        description="Go from one prompt to the next, or from one latent to the next, in a film.",
        notes="The first and the last frame of a stretch are the pictures that `sample` draws.",
    )
    _add_model(parser)
    parser.add_argument("prompt", nargs="+", help="where to go, in this order")
    parser.add_argument(
        "--num_latents", type=int, default=1, metavar="N", help="latents of each prompt (default: 1)"
    )
    parser.add_argument(
        "--frames", type=int, default=24, metavar="N", help="from one to the next (default: 24)"
    )
    parser.add_argument("--fps", type=float, default=12.0, metavar="N", help="frames a second (default: 12)")
    parser.add_argument("--loop", action="store_true", help="go back to the first, and on for ever")
    parser.add_argument(
        "--out", default="film.gif", metavar="FILE", help=".gif, .webp or .mp4 (default: film.gif)"
    )
    _add_drawing(parser)
    return parser


def edit_parser() -> argparse.ArgumentParser:
    parser = verb_parser("edit", description="Keep the latent and change the words: pictures side by side.")
    _add_model(parser)
    parser.add_argument("prompt", help="before")
    parser.add_argument("--to", nargs="+", required=True, metavar="PROMPT", help="after; a column each")
    parser.add_argument("--num_images", type=int, default=4, metavar="N", help="latents (default: 4)")
    parser.add_argument(
        "--out", default="edit.png", metavar="FILE", help=".png, .webp or .jpg (default: edit.png)"
    )
    _add_drawing(parser)
    return parser


def evaluate_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "evaluate",
        description="Score a model's pictures against real images, and write JSON, Markdown and a sheet.",
        notes=(
            "Of near-alike images (data.balance_groups) one each is taken. What is known of the real images "
            "is kept in the package's cache. Networks that taught the model are refused."
        ),
    )
    _add_model(parser)
    parser.add_argument(
        "--data", help="as `imagen-pl data inspect` takes it (default: what the model was trained on)"
    )
    parser.add_argument("--split", help="of the data (default: test where there is one, else validation)")
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="as data.val_fraction in training, where no split is held out (default: 0.05)",
    )
    parser.add_argument(
        "--num_images", type=int, default=1000, metavar="N", help="captions to draw (default: 1000)"
    )
    parser.add_argument(
        "--train_images",
        type=int,
        default=10_000,
        metavar="N",
        help="training images to look for copies among; 0 looks for none (default: 10000)",
    )
    parser.add_argument(
        "--extractors",
        nargs="+",
        metavar="NAME",
        help="efficientnet_lite0, efficientnet_lite1, inception_v3 (FID), or a network of transformers by "
        "its hub name or folder, as facebook/dinov2-small (default: one that ships and did not teach)",
    )
    parser.add_argument("--clip", metavar="NAME", help="CLIP or its like, by hub name or folder: CLIP score")
    parser.add_argument(
        "--fid_weights", metavar="FILE", help="Inception's weights, where there is no network"
    )
    parser.add_argument("--distractors", type=int, default=99, metavar="N", help="in retrieval (default: 99)")
    parser.add_argument(
        "--style_after",
        default=", ",
        metavar="TEXT",
        help='parts the style from a caption, as in "red heart, noto style" (default: ", ")',
    )
    parser.add_argument("--out", default="evaluation", metavar="DIR", help="folder (default: evaluation)")
    _add_drawing(parser)
    return parser


def export_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "export",
        description="Write a model for other programs, and hold it against the original.",
        notes=(
            "onnx and torch-export hold the generator and the text encoder, any number of captions at once, "
            "the tokenizer, and a README.md with the few lines of code that draw."
        ),
    )
    _add_model(parser)
    parser.add_argument(
        "--to", choices=("safetensors", "onnx", "torch-export"), required=True, help="kind of files"
    )
    parser.add_argument("--half", action="store_true", help="safetensors of half the size, in float16")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    return parser


def push_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "push",
        description="Publish a model on the Hugging Face hub: half-precision weights, a card, and samples.",
        notes="Read the card there, and complete it: it says of the data only what the model knows of them.",
    )
    _add_model(parser)
    parser.add_argument("hub_id", metavar="OWNER/NAME", help="its name on the hub")
    parser.add_argument("--private", action="store_true", help="let nobody else see it, where it is new")
    parser.add_argument(
        "--license", default="mit", help="of the weights, as the hub spells it (default: mit)"
    )
    parser.add_argument(
        "--evaluation", metavar="FILE", help="evaluation.json of `imagen-pl evaluate`: scores for the card"
    )
    parser.add_argument(
        "--prompts", nargs="+", metavar="PROMPT", help="of the card's samples, drawn with seed 0"
    )
    return parser


def demo_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "demo",
        description="Serve a page to try a model on: draw, change words, film, caption.",
    )
    _add_model(parser)
    parser.add_argument("--captioner", metavar="PATH", help="of another run (default: the model's own)")
    parser.add_argument("--examples", nargs="+", metavar="PROMPT", help="to click on")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--server_name",
        default="127.0.0.1",
        help="0.0.0.0 serves other machines too (default: this one alone)",
    )
    parser.add_argument(
        "--share", action="store_true", help="give it a public address for three days, by Gradio"
    )
    parser.add_argument("--device", help="as cpu or cuda:1 (default: the first CUDA device if there is one)")
    return parser


def report_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "grow-report",
        description="Write a page of a run: its curves, and how its samples grew.",
    )
    parser.add_argument("run", help="its folder, as runs/quickstart")
    parser.add_argument(
        "--out", metavar="FILE", help="an .html file (default: report.html in the run's folder)"
    )
    return parser


def caption_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "caption",
        description="Say what pictures show. A drawn caption is decided by its picture and its seed.",
    )
    parser.add_argument(
        "model",
        help="a captioner's folder, a run or .ckpt that was trained with one, or emoji, which comes with "
        "this package",
    )
    parser.add_argument("image", nargs="+", help="a picture")
    parser.add_argument(
        "--num_beams",
        type=int,
        default=1,
        metavar="N",
        help="beginnings to keep; more find likelier captions",
    )
    parser.add_argument(
        "--num_captions", type=int, metavar="N", help="draw so many each, instead of the likeliest one"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first caption drawn (default: 0)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: image, caption, seed")
    parser.add_argument("--device", help="as cpu or cuda:1 (default: the first CUDA device if there is one)")
    return parser


def _add_drawing(parser: argparse.ArgumentParser) -> None:
    """What every verb that draws takes."""
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: 0)")
    parser.add_argument(
        "--truncation",
        type=float,
        default=1.0,
        metavar="T",
        help="0 to 1; less than 1 gives more typical, less varied pictures (default: 1)",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        metavar="G",
        help="0 to 10; more than 1 heeds the words more, less than 1 less (default: 1)",
    )
    parser.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="0 to 200 steps that bring each picture nearer to what the model's prior guesses of its "
        "caption; 20 are enough, and slow (default: 0)",
    )
    parser.add_argument("--device", help="as cpu or cuda:1 (default: the first CUDA device if there is one)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """What every verb that opens a model takes."""
    parser.add_argument(
        "model",
        help="a run's folder, a .ckpt file, a release's folder, OWNER/NAME on the Hugging Face hub, or "
        "emoji, which comes with this package",
    )
