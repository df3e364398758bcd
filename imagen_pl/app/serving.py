"""`imagen-pl demo`: serve the page."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from imagen_pl.app.page import CSS, MAX_UPLOAD_MB, Studio, make_page
from imagen_pl.describing import Describer, load_captioner
from imagen_pl.errors import UserError
from imagen_pl.inference import load


def demo(arguments: argparse.Namespace) -> int:
    """Do what the parsed command line says, until Ctrl-C.

    Raises:
        UserError: there is no such model, gradio is missing, or the port is taken.
    """
    # Nothing is told to anybody.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    past_proxies(arguments.server_name)
    try:
        import gradio  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("the page needs a package: pip install gradio") from None
    model = load(arguments.model, arguments.device)
    describer = _describer(arguments)
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(model, arguments.model, describer, Path(folder))
        page = make_page(studio, arguments.examples) if arguments.examples else make_page(studio)
        try:
            page.launch(
                server_name=arguments.server_name,
                server_port=arguments.port,
                share=arguments.share,
                allowed_paths=[folder],
                max_file_size=f"{MAX_UPLOAD_MB}mb",
                css=CSS,
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
            page.block_thread()
        finally:
            page.close(verbose=False)
    return 0


def past_proxies(server_name: str) -> None:
    """Gradio asks the page whether it is there, which a proxy cannot tell it: exempt this machine too."""
    names = ("no_proxy", "NO_PROXY")
    told = (host.strip() for name in names for host in os.environ.get(name, "").split(","))
    hosts = dict.fromkeys([*filter(None, told), "127.0.0.1", "localhost", server_name])
    exempt = "*" if "*" in hosts else ",".join(hosts)
    os.environ.update(dict.fromkeys(names, exempt))


def _describer(arguments: argparse.Namespace) -> Describer | None:
    """The captioner that is asked for; else the model's own, if it has one."""
    if arguments.captioner is not None:
        return load_captioner(arguments.captioner, arguments.device)
    try:
        return load_captioner(arguments.model, arguments.device)
    except UserError:
        return None
