"""Uploads folders to the Hugging Face hub, with one-line errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from imagen_pl.errors import UserError
from imagen_pl.storage.hub import hub_has_address
from imagen_pl.storage.model_paths import HUB_ID

RepoType = Literal["model", "dataset", "space"]


def check_hub(hub_id: str) -> None:
    """Check the name, the login and the connection before anything is prepared for upload.

    Raises:
        UserError: the name is malformed, the user is not logged in, or the hub cannot be reached.
    """
    check_hub_name(hub_id)
    from huggingface_hub import HfApi

    if not hub_has_address():
        raise _unreachable(hub_id, "its address is not found")
    with _hub_errors(hub_id):
        HfApi().whoami()


def check_hub_name(hub_id: str) -> None:
    """Raise UserError if a name is not of the form OWNER/NAME."""
    if not re.fullmatch(HUB_ID, hub_id):
        raise UserError(f"{hub_id} is not a name on the hub: give OWNER/NAME")


def upload(
    folder: Path,
    hub_id: str,
    private: bool = False,
    repo_type: RepoType = "model",
    message: str = "Upload by imagen_pl",
) -> None:
    """Create the repository if it does not exist, and upload all files of a folder in one commit.

    Args:
        folder: what is uploaded.
        hub_id: its name on the hub, "owner/name".
        private: make a new repository private.
        repo_type: the kind of repository.
        message: commit message.

    Raises:
        UserError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(hub_id):
        api.create_repo(hub_id, private=private, exist_ok=True, repo_type=repo_type)
        api.upload_folder(repo_id=hub_id, folder_path=folder, commit_message=message, repo_type=repo_type)


@contextmanager
def _hub_errors(hub_id: str) -> Iterator[None]:
    """Errors of huggingface_hub as one line for the user."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError:
        raise UserError(
            "not logged in to the Hugging Face hub: run `hf auth login`, or set HF_TOKEN"
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise UserError(f"the hub refuses {hub_id}: {_one_line(error)}") from error
    except Exception as error:
        if not (isinstance(error, OSError) or _of_the_connection(error)):
            raise
        raise _unreachable(hub_id, _one_line(error) or type(error).__name__) from error


def _of_the_connection(error: Exception) -> bool:
    """Whether an error comes from the HTTP library, which differs between versions of huggingface_hub."""
    libraries = ("httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub")
    return type(error).__module__.partition(".")[0] in libraries


def _unreachable(hub_id: str, why: str) -> UserError:
    return UserError(
        f"the Hugging Face hub cannot be reached ({why}): check the network and HF_HUB_OFFLINE, then push "
        f"again. The name {hub_id} was not checked"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
