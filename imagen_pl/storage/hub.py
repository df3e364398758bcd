"""Loads models of `transformers` from a folder or the hub, and raises a one-line error if that fails."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from imagen_pl.errors import UserError


def from_pretrained(kind: str, path: str, *, what: str, **options: Any) -> Any:
    """Load a configuration, tokenizer or model of transformers.

    Args:
        kind: class name in transformers, for example "AutoTokenizer".
        path: a name on the Hugging Face hub, or a folder.
        what: its role, for example "text encoder", for the error message.
        **options: arguments of its `from_pretrained`.

    Raises:
        UserError: it is not available.
    """
    import transformers

    if not Path(path).exists() and not hub_has_address():
        options["local_files_only"] = True  # else it retries for 30 seconds
    log_level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return getattr(transformers, kind).from_pretrained(path, **options)
    except Exception as error:  # transformers raises many types
        if Path(path).exists():
            why = f"the folder contains no model that transformers can open ({_first_line(error)})"
        else:
            why = (
                "there is no such folder, and it cannot be downloaded from the Hugging Face hub: check the "
                "name and the network, or pass a folder that contains the model"
            )
        raise UserError(f"{what} {path}: {why}") from error
    finally:
        transformers.logging.set_verbosity(log_level)


def hub_has_address() -> bool:
    """Whether the hub's address can be resolved; True behind a proxy, where this cannot be checked."""
    from huggingface_hub import constants

    if getproxies().keys() - {"no"}:  # NO_PROXY alone sets no proxy
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
