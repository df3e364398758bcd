"""`imagen-pl data shards`: our source and the `webdataset` library read back what was written."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
import webdataset
from pyarrow import parquet

import imagen_pl.data.shards as module
from imagen_pl.cli.data import run as main
from imagen_pl.data.inspect import guess_source
from imagen_pl.data.shards import Sharded, write_shards
from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.base import Row, Source
from imagen_pl.data.sources.webdataset import WebDatasetSource
from imagen_pl.errors import UserError
from tests.helpers.image_files import (
    Solid,
    encoded,
    noise,
    truncated_jpeg,
    write_images,
    write_metadata,
    write_photos,
    write_tar,
)

Pairs = Counter[tuple[bytes, tuple[str, ...]]]


def pairs_of(path: Path) -> dict[str, Pairs]:
    """Encoded images and captions of a data set, by split."""
    source = guess_source(str(path))
    if isinstance(source, Source):
        splits = source.load(SkippedImages())
        images = {s: [(Path(r.place).read_bytes(), r.captions) for r in rows] for s, rows in splits.items()}
        return {split: Counter(found) for split, found in images.items()}
    assert isinstance(source, WebDatasetSource)
    return {split: Counter(read(source, shards)) for split, shards in source.shards().items()}


def read(source: WebDatasetSource, shards: list[str]) -> Iterator[tuple[bytes, tuple[str, ...]]]:
    for shard in shards:
        for row, data in source.read(shard, SkippedImages()):
            yield data, row.captions


def write(path: Path, out: Path, **settings: object) -> Sharded:
    source = guess_source(str(path))
    assert isinstance(source, Source)
    return write_shards(source, out, **settings)  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """30 images to train on, of several kinds, some of several captions, and 5 to validate on."""
    folder = tmp_path / "mine"
    write_photos(folder / "train", 27)
    for kind in ("jpg", "webp", "gif"):
        noise(20, 12).convert("RGB").save(folder / f"train/noise.{kind}.{kind}")
        (folder / f"train/noise.{kind}.txt").write_text("Käse, 30 %\nsecond caption\n", encoding="utf-8")
    write_photos(folder / "val", 5)
    write_photos(folder / "test", 2)
    return folder


def test_shards_have_the_same_images_captions_and_splits(splits: Path, tmp_path: Path) -> None:
    done = write(splits, tmp_path / "shards", size_images=8)
    assert pairs_of(tmp_path / "shards") == pairs_of(splits)
    assert done.images == {"train": 30, "validation": 5, "test": 2}
    assert names(tmp_path / "shards") == [
        "test-000000.tar",
        *(f"train-{n:06}.tar" for n in range(4)),
        "validation-000000.tar",
    ]
    sizes = [len(list(read(WebDatasetSource(""), [str(f)]))) for f in done.shards["train"]]
    assert sizes == [7, 8, 7, 8]


def test_coco_and_parquet_data_become_shards(tmp_path: Path) -> None:
    for part, count in (("train2017", 4), ("val2017", 2)):
        files = write_images(tmp_path / "coco" / part, [f"{i}.jpg" for i in range(count)])
        content = {
            "images": [{"id": i, "file_name": file.name} for i, file in enumerate(files)],
            "annotations": [{"image_id": i, "caption": f"{i} {n}"} for i in range(count) for n in range(5)],
        }
        (tmp_path / f"coco/captions_{part}.json").write_text(json.dumps(content))
    write(tmp_path / "coco", tmp_path / "a")
    assert pairs_of(tmp_path / "a") == pairs_of(tmp_path / "coco")
    images, captions = [encoded(noise(seed=i)) for i in range(4)], list("abcd")
    table = {
        "image": images,
        "text": captions,
        "split": ["train", "train", "train", "test"],
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "table.parquet")
    write(tmp_path / "table.parquet", tmp_path / "b")
    rows = [(image, (text,)) for image, text in zip(images, captions, strict=True)]
    assert pairs_of(tmp_path / "b") == {"train": Counter(rows[:3]), "test": Counter(rows[3:])}


def test_webdataset_library_reads_the_shards(splits: Path, tmp_path: Path) -> None:
    write(splits, tmp_path / "shards", size_images=8)
    shards = str(tmp_path / "shards/train-{000000..000003}.tar")
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    assert len({sample["__key__"] for sample in samples}) == 30
    output = Counter(c for s in samples for c in ([s["txt"]] if "txt" in s else s["json"]["captions"]))
    assert output == Counter(c for _, captions in pairs_of(splits)["train"].elements() for c in captions)
    kinds = Counter(kind for s in samples for kind in ("png", "jpg", "webp", "gif") if kind in s)
    assert kinds == {"png": 27, "jpg": 1, "webp": 1, "gif": 1}
    picture = next(s["png"] for s in samples if s.get("txt") == "a red square 0")
    assert picture.convert("RGB").getpixel((5, 5)) == (255, 0, 0)


def test_shards_are_shuffled_by_seed_and_reproducible_to_the_bit(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "mine", 40)

    def shards(name: str, seed: int) -> list[bytes]:
        return [
            f.read_bytes() for f in write(photos, tmp_path / name, size_images=20, seed=seed).shards["train"]
        ]

    first = shards("a", 0)
    assert shards("b", 0) == first
    assert shards("c", 1) != first
    assert shards("d", -1) not in (first, shards("e", 1))
    with tarfile.open(tmp_path / "a/train-000000.tar") as tar:
        output = [tar.extractfile(m).read().decode() for m in tar if m.name.endswith("txt")]  # type: ignore[union-attr]
        assert {member.mtime for member in tar.getmembers()} == {0}
    numbers = [int(caption.split()[-1]) for caption in output]
    assert len(numbers) == 20
    assert numbers != sorted(numbers)
    assert max(numbers) >= 30  # of both halves
    assert min(numbers) < 10


def test_shards_have_about_the_given_size(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(40):
        noise(64, 64, seed=i).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"noise {i}")
    done = write(folder, tmp_path / "shards", size_mb=0.1)
    sizes = [file.stat().st_size for file in done.shards["train"]]
    assert len(sizes) > 4
    assert 70_000 < min(sizes) < max(sizes) <= 110_000


def test_two_train_shards_unless_there_is_a_validation_split(splits: Path, tmp_path: Path) -> None:
    assert len(write(splits, tmp_path / "a").shards["train"]) == 1
    photos = write_photos(tmp_path / "photos", 3)
    done = write(photos, tmp_path / "b")
    assert [len(files) for files in done.shards.values()] == [2]
    assert "no validation: data.val_fraction of the train shards will be held out" in "\n".join(done.lines())


def test_unreadable_images_are_skipped_and_counted(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "mine", 8)
    (photos / "001.png").write_bytes(b"no image")
    (photos / "002.png").write_bytes(truncated_jpeg())
    (photos / "003.txt").write_text("")
    (photos / "004.txt").unlink()
    write_metadata(photos, [{"file_name": "gone.png", "text": "gone"}])
    done = write(photos, tmp_path / "shards")
    first, second = ("001", "002") if "(001.png, 002.png)" in done.problems.summary() else ("002", "001")
    left_out = f"2 unreadable ({first}.png, {second}.png)"  # in the order in which they come up
    assert (
        f"skipped 5 of 9 images: {left_out}, 1 missing (gone.png), 1 with an empty caption (003.png), "
        "1 without a caption (004.png)"
    ) in done.lines()
    captions = {words for _, words in pairs_of(tmp_path / "shards")["train"]}
    assert captions == {
        (f"a {colour} square {i}",) for i, colour in ((0, "red"), (5, "orange"), (6, "black"), (7, "grey"))
    }


def test_bad_images_leave_no_gaps_in_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if all images of a shard are bad."""
    monkeypatch.setattr(module, "_TRIED", 2)

    class MostlyBad(Solid):
        def image(self, row: Row) -> bytes:
            return b"bad" if row.place % 4 else super().image(row)

    done = write_shards(MostlyBad(24), tmp_path / "shards", size_images=1)
    assert names(tmp_path / "shards") == [f"train-{n:06}.tar" for n in range(6)]
    assert done.problems.counts == {"unreadable": 18}
    assert sum(pairs_of(tmp_path / "shards")["train"].values()) == 6


def test_unusual_split_names_are_kept(tmp_path: Path) -> None:
    class Named(Solid):
        def load(self, problems: SkippedImages) -> dict[str, list[Row]]:
            rows = super().load(problems)["train"]
            return {"train": rows[:4], "test-2 (hard)": rows[4:], "none": []}

    write_shards(Named(6), tmp_path / "shards")
    found = pairs_of(tmp_path / "shards")
    assert {split: found[split].total() for split in found} == {"train": 4, "test2hard": 2}


# ---------------------------------------------------------------------- errors and interruptions


def test_bad_input_of_shards_gives_one_line_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "mine", 3)
    single = write_photos(tmp_path / "single", 2)
    (single / "001.png").write_bytes(b"bad")
    held = write_photos(tmp_path / "held/test", 2).parent
    bad = write_photos(tmp_path / "bad", 2)
    for image in bad.glob("*.png"):
        image.write_bytes(b"bad")
    full = tmp_path / "full"
    full.mkdir()
    (full / "a.txt").touch()
    write_tar(tmp_path / "tars/0.tar", {"a.png": encoded(noise()), "a.txt": b"a"})
    for path, out, words, message in (
        (tmp_path / "nowhere", "new", [], r"nowhere does not exist: check the path"),
        (photos, "full", [], r"--out .*full is not empty: name a new folder"),
        (photos, "full/a.txt", [], r"--out .*a.txt is a file: name a new folder"),
        (photos, "mine/shards", [], r"--out .*shards lies within .*mine.*: name another folder"),
        (photos, "new", ["--size_mb", "0"], r"--size_mb 0 must be more than 0"),
        (tmp_path / "tars", "new", [], r"tars holds shards already: train from it with --config configs/da"),
        (single, "new", [], r"single has 1 image to train on: give at least 2, .*1 unreadable \(001.png\)"),
        (held, "new", [], r"held: no images to train on; it has only test \(2\)$"),
        (bad, "new", [], r"bad: no images to train on; skipped 2 unreadable"),
    ):
        with pytest.raises(UserError, match=message) as error:
            main(["shards", str(path), "--out", str(tmp_path / out), *words])
        assert "\n" not in str(error.value)
        assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):
        main(["shards", str(photos), "--out", "x", "--size_mb", "1", "--size_images", "1"])
    assert "not allowed with argument" in capsys.readouterr().err


class Breaking(Solid):
    """It fails at the fifth image of the second pass."""

    opened = 0

    def image(self, row: Row) -> bytes:
        self.opened += 1
        if self.opened > self.count + 5:
            raise KeyboardInterrupt
        return super().image(row)


@pytest.mark.parametrize("made", [False, True])
def test_interrupted_writing_leaves_no_files(
    made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PART", 1)
    out = tmp_path / "shards"
    if made:
        out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        write_shards(Breaking(12), out, size_images=2)
    assert out.exists() == made
    assert names(tmp_path) == (["shards"] if made else [])
    assert not made or names(out) == []
    assert write_shards(Solid(12), out, size_images=2).images == {"train": 12}


def test_shards_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "shards"
    seen: list[Path] = []
    monkeypatch.setattr(module, "_PART", 1)

    class Watching(Solid):
        def image(self, row: Row) -> bytes:
            seen.extend(out.glob("*.tar"))
            return super().image(row)

    def check() -> None:
        for shard in set(seen):
            with tarfile.open(shard) as tar:
                assert len(tar.getmembers()) == 8

    write_shards(Watching(12), out, size_images=4)
    assert len(set(seen)) >= 2
    check()


def test_several_captions_are_written_as_json(tmp_path: Path) -> None:
    write_images(tmp_path / "mine", ["a.png", "b.png"])
    write_metadata(
        tmp_path / "mine", [{"file_name": f"{n}.png", "captions": [f"{n} é", f"the {n}"]} for n in "ab"]
    )
    done = write(tmp_path / "mine", tmp_path / "shards")
    with tarfile.open(done.shards["train"][0]) as tar:
        image, text = tar.getmembers()
        assert image.name.endswith(".png")
        output = json.loads(tar.extractfile(text).read())  # type: ignore[union-attr]
    assert text.name == image.name.replace(".png", ".json")
    assert output in [{"captions": [f"{n} é", f"the {n}"]} for n in "ab"]
