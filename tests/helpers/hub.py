"""A fake Hugging Face hub in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from imagen_pl.storage import hub_upload


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of uploaded repositories; data sets are in datasets/ and Spaces in spaces/."""
    folder = tmp_path / "hub"

    def upload(api: Any, repo_id: str, folder_path: Path, commit_message: str, repo_type: str) -> None:
        place = folder if repo_type == "model" else folder / f"{repo_type}s"
        shutil.copytree(folder_path, place / repo_id)

    def download(name: str, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        name = name if revision is None else f"{name}@{revision}"
        if not (folder / name).is_dir():
            raise FileNotFoundError(name)
        copy = tmp_path / "downloads" / name
        shutil.copytree(
            folder / name,
            copy,
            ignore=lambda _, files: [f for f in files if f not in allow_patterns],
            dirs_exist_ok=True,
        )
        return str(copy)

    monkeypatch.setattr(hub_upload, "hub_has_address", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "whoami", lambda *_, **__: {"name": "me"})
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return folder
