"""Prompts in files: .txt (one a line), .csv or .jsonl (field `prompt`)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagen_pl.errors import UserError

# Names with a fixed meaning in the output's metadata.jsonl.
_TAKEN = {"file_name": "source_file_name"}


@dataclass(frozen=True)
class Prompt:
    """A row of a file of prompts.

    text: the words.
    line: where it stands in the file, from 1.
    seed: the row's own seed, if it names one.
    fields: every other field of the row.
    """

    text: str
    line: int
    seed: int | None = None
    fields: dict[str, Any] = field(default_factory=dict)


class _BadRow(Exception):
    """A row is wrong; the message says why."""


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a file of prompts in the format of its suffix.

    Raises:
        UserError: the file is missing, empty or of an unknown kind, or rows are bad: their lines are named.
    """
    path = Path(path)
    readers = {".txt": _lines, ".csv": _csv, ".jsonl": _jsonl}
    if path.suffix.lower() not in readers:
        raise UserError(f"prompts {path}: use a file that ends in .txt (one a line), .csv or .jsonl")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"prompts {path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"prompts {path} is a folder: name a file in it") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"prompts {path}, line {line}: is not UTF-8; save the file as UTF-8") from None
    prompts: list[Prompt] = []
    bad: list[tuple[int, str]] = []
    for line, row in readers[path.suffix.lower()](text, path):
        try:
            prompts.append(_prompt(row, line))
        except _BadRow as problem:
            bad.append((line, str(problem)))
    if bad:
        others = [str(line) for line, _ in bad[1:9]] + (["…"] if len(bad) > 9 else [])
        more = f" (bad too: line{'s' * (len(others) > 1)} {', '.join(others)})" if others else ""
        raise UserError(f"prompts {path}, line {bad[0][0]}: {bad[0][1]}{more}")
    if not prompts:
        raise UserError(f"prompts {path}: holds no prompt")
    return prompts


def _prompt(row: dict[str, Any] | str, line: int) -> Prompt:
    if isinstance(row, str):  # an error message
        raise _BadRow(row)
    text = row.get("prompt")
    if text is None:
        raise _BadRow(f"has no field 'prompt', only {', '.join(map(repr, row)) or 'nothing'}")
    if not isinstance(text, str):
        raise _BadRow(f"its prompt is not text but {json.dumps(text)}")
    if not text.strip():
        raise _BadRow("its prompt is empty")
    seed = row.get("seed")
    if seed == "":
        seed = None  # an empty cell of a table
    if seed is not None:
        try:
            seed = int(str(seed))
        except ValueError:
            raise _BadRow(f"its seed is not a whole number but {seed!r}") from None
    others = {_TAKEN.get(name, name): v for name, v in row.items() if name not in ("prompt", "seed")}
    return Prompt(text.strip(), line, seed, others)


def _lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, {"prompt": line}


def _jsonl(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    # Not splitlines(): JSON may hold its other line ends, as U+2028, unescaped.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"is not JSON: {error.msg} at column {error.colno}"
            continue
        yield number, row if isinstance(row, dict) else 'is not a JSON object, as {"prompt": "a red heart"}'


def _csv(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if "prompt" not in header:
            raise UserError(
                f"prompts {path}, line 1: the first line names the columns and must have 'prompt'; "
                f"it has {', '.join(map(repr, header)) or 'nothing'}"
            )
        start = reader.line_num + 1
        for row in reader:
            if row:
                wrong = f"has {len(row)} columns where the first line has {len(header)}"
                yield start, dict(zip(header, row, strict=True)) if len(row) == len(header) else wrong
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"prompts {path}, line {reader.line_num}: is not CSV: {error}") from None
