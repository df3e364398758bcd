import json
from pathlib import Path

import pytest

from imagen_pl.cli.prompt_files import read_prompts
from imagen_pl.errors import UserError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_txt_has_one_prompt_per_line(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "a red heart\n\n  cupcake, noto style  \n# 1 medal\n")
    prompts = read_prompts(path)
    assert [(p.text, p.line) for p in prompts] == [
        ("a red heart", 1),
        ("cupcake, noto style", 3),
        ("# 1 medal", 4),
    ]


def test_csv_carries_every_other_column(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", '﻿id,prompt,seed,file_name\n7,"a heart,\nred",3,x.png\n8,cat,,y.png\n')
    first, second = read_prompts(path)
    assert (first.text, first.line, first.seed) == ("a heart,\nred", 2, 3)
    assert first.fields == {"id": "7", "source_file_name": "x.png"}
    assert (second.line, second.fields["id"]) == (4, "8")


def test_an_empty_seed_in_csv_is_no_seed(tmp_path: Path) -> None:
    (prompt,) = read_prompts(write(tmp_path, "p.csv", "prompt,seed\ncat,\n"))
    assert prompt.seed is None


def test_jsonl_keeps_nested_fields(tmp_path: Path) -> None:
    row = {"prompt": "ein rotes Herz \u2028 groß", "tags": ["a", {"b": 1}], "score": 0.5, "seed": 11}
    path = write(tmp_path, "p.jsonl", json.dumps(row, ensure_ascii=False) + "\n\n")
    (prompt,) = read_prompts(path)
    assert prompt.text == row["prompt"]
    assert prompt.fields == {"tags": row["tags"], "score": 0.5}
    assert prompt.seed == 11


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", '{"prompt": "cat"}\n{"text": "dog"}\n', "line 2: has no field 'prompt', only 'text'"),
        ("p.jsonl", '{"prompt": "cat"}\n\n{"prompt": \n', "line 3: is not JSON: Expecting value"),
        ("p.jsonl", '["cat"]\n', "line 1: is not a JSON object"),
        ("p.jsonl", '{"prompt": 5}\n', "line 1: its prompt is not text but 5"),
        ("p.jsonl", '{"prompt": " "}\n', "line 1: its prompt is empty"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.5}\n', "line 1: its seed is not a whole number but 1.5"),
        (
            "p.jsonl",
            '{}\n{"prompt": "a"}\n{"prompt": ""}\n3\n',
            r"line 1: has no field 'prompt', only nothing \(bad too: lines 3, 4\)",
        ),
        ("p.csv", "prompt,id\ncat,1\ndog\n", "line 3: has 1 columns where the first line has 2"),
        ("p.csv", "text,id\ncat,1\n", "line 1: the first line names the columns and must have 'prompt'"),
        ("p.csv", "", "must have 'prompt'; it has nothing"),
        ("p.csv", 'prompt\n"cat\n', "is not CSV"),
        ("p.csv", "prompt\n", "holds no prompt"),
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.yaml", "a: b\n", "use a file that ends in .txt"),
    ],
)
def test_bad_files_give_one_line_error(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as output:
        read_prompts(write(tmp_path, name, text))
    assert "\n" not in str(output.value)
    assert name in str(output.value)


def test_missing_file_and_folder_give_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        read_prompts(tmp_path / "none.txt")
    folder = tmp_path / "folder.txt"
    folder.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read_prompts(folder)


def test_a_file_that_is_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("cat\nché\n".encode("latin-1"))
    with pytest.raises(UserError, match="line 2: is not UTF-8"):
        read_prompts(path)
