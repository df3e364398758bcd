"""`imagen-pl demo`: serve the page."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imagen_pl.cli.open_model import check_upscaler, open_captioner, open_model, open_upscaler
from imagen_pl.cli.options import (
    add_device_argument,
    add_model_argument,
    add_upscaler_argument,
    verb_parser,
)
from imagen_pl.errors import UserError
from imagen_pl.storage.model_paths import model_file

if TYPE_CHECKING:
    from imagen_pl.inference.retrieval_captioning import AnyCaptioner


def make_parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "demo",
        description="Serve a web page to try a model: draw, vary, edit prompts, interpolate, and change "
        "uploaded pictures.",
    )
    add_model_argument(parser)
    parser.add_argument(
        "--captioner",
        metavar="PATH",
        help="captioner to use: what `imagen-pl caption` takes (default: the model's own)",
    )
    add_upscaler_argument(parser)
    parser.add_argument("--examples", nargs="+", metavar="PROMPT", help="example prompts to click on")
    parser.add_argument(
        "--port", type=int, help="port of the page (default: the first free one from 7860 on)"
    )
    parser.add_argument(
        "--server_name",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 serves other machines too (default: only this machine)",
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="give the page a public address for three days, through Gradio's server",
    )
    parser.add_argument(
        "--export-space",
        metavar="DIR",
        help="write a folder that serves the page as a Gradio Space or with Docker, and stop",
    )
    add_device_argument(parser)
    return parser


def run(words: Sequence[str]) -> int:
    """Parse the command line and run the verb."""
    return demo(make_parser().parse_args(words))


def demo(arguments: argparse.Namespace) -> int:
    """Run the verb until Ctrl-C or SIGTERM.

    Raises:
        UserError: there is no such model, gradio is missing, or the port is taken.
    """
    file = model_file(arguments.model)  # a wrong name is reported before gradio and torch are imported
    check_upscaler(arguments.upscaler)
    if arguments.export_space is not None:
        return export_space(arguments, file)
    # Gradio sends no usage data.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    past_proxies(arguments.server_name)
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("the page needs a package: pip install gradio") from None
    model = open_model(str(file), arguments.device, draws=False)
    from imagen_pl.demo.page import build_page, launch_options
    from imagen_pl.demo.studio import Studio

    captioner = _captioner(arguments)
    # Image-to-image models have no upscaler.
    upscaler = (
        None if model.generator.reads_images else open_upscaler(arguments.upscaler, model, arguments.device)
    )
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(model, arguments.model, captioner, Path(folder), upscaler)
        # Uploads and Gradio's copies of pictures are deleted with the rest.
        os.environ.setdefault("GRADIO_TEMP_DIR", str(Path(folder, "gradio")))
        page = build_page(studio, arguments.examples)
        try:
            page.launch(
                server_name=arguments.server_name,
                server_port=arguments.port,
                share=arguments.share,
                **launch_options(studio),
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--port {arguments.port} cannot be served on: {reason}") from error
        print(
            f"Open {page.local_url}{' and ' + page.share_url if page.share_url else ''}  (Ctrl-C ends it)",
            flush=True,
        )
        try:
            # After SIGTERM, which service managers send, the visitors' files are deleted too.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            page.block_thread()
        finally:
            page.close(verbose=False)
    return 0


def export_space(arguments: argparse.Namespace, file: Path) -> int:
    """Write the folder of --export-space.

    Raises:
        UserError: it exists and is not empty, or a captioner is named, which is not copied.
    """
    if arguments.captioner is not None:
        raise UserError("--export-space copies no captioner: leave --captioner out")
    from imagen_pl.demo.space import can_be_named, write_space

    model, name = open_model(str(file), "cpu"), arguments.upscaler
    upscaler = None if name is None or can_be_named(name) else open_upscaler(name, model, "cpu")
    folder = Path(arguments.export_space)
    files = write_space(
        folder,
        arguments.model,
        model,
        arguments.examples or (),
        name,
        None if upscaler is None else upscaler.model,
    )
    print(f"{folder}: {', '.join(files)}")
    print(f"Try it: python {folder / 'app.py'}")
    return 0


def past_proxies(server_name: str) -> None:
    """Gradio requests its own page at the start, which fails through a proxy: exempt this machine."""
    names = ("no_proxy", "NO_PROXY")
    listed = (host.strip() for name in names for host in os.environ.get(name, "").split(","))
    hosts = dict.fromkeys([*filter(None, listed), "127.0.0.1", "localhost", server_name])
    exempt = "*" if "*" in hosts else ",".join(hosts)
    os.environ.update(dict.fromkeys(names, exempt))


def _captioner(arguments: argparse.Namespace) -> AnyCaptioner | None:
    """The captioner named by --captioner; else the model's own, if it has one."""
    if arguments.captioner is not None:
        return open_captioner(arguments.captioner, arguments.device)
    try:
        return open_captioner(arguments.model, arguments.device)
    except UserError:
        return None
