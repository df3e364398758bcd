"""Shards over http and through fsspec: broken connections are reopened, damaged shards are skipped."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from imagen_pl.data.skipped_images import SkippedImages
from imagen_pl.data.sources.webdataset import WebDatasetSource
from imagen_pl.errors import UserError
from imagen_pl.storage.remote_files import RemoteFile
from tests.data.test_webdataset_source import data_of, write_shards


class Flaky(SimpleHTTPRequestHandler):
    """Truncates the first `cut[name]` responses for a file; the first `busy[name]` are 503."""

    cut: ClassVar[dict[str, int]] = {}
    busy: ClassVar[dict[str, int]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        name = Path(self.path).name
        self.asked.append(name)
        if self.busy.get(name, 0) > 0:
            self.busy[name] -= 1
            self.send_error(503)
            return
        file = Path(self.translate_path(self.path))
        if self.cut.get(name, 0) > 0 and file.is_file():
            self.cut[name] -= 1
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves the folder over http on localhost."""
    Flaky.cut, Flaky.busy, Flaky.asked = {}, {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Flaky, directory=str(tmp_path))) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagen_pl.storage.remote_files.time.sleep", lambda seconds: None)


def captions(source: WebDatasetSource, problems: SkippedImages | None = None) -> list[str]:
    problems = problems or SkippedImages()
    shards = source.shards()["train"]
    return [row.captions[0] for shard in shards for row, _ in source.read(shard, problems)]


def test_shards_over_http_equal_those_on_disk(tmp_path: Path, server: str) -> None:
    """Also if the server is busy at first, or if connections break several times."""
    write_shards(tmp_path, 3)
    on_disk = captions(WebDatasetSource(str(tmp_path)))
    Flaky.cut, Flaky.busy = {"001.tar": 2}, {"002.tar": 3}
    problems = SkippedImages()
    assert captions(WebDatasetSource(f"{server}/{{000..002}}.tar"), problems) == on_disk
    assert problems.total() == 0
    assert [Flaky.asked.count(f"00{i}.tar") for i in range(3)] == [1, 3, 4]


def test_missing_truncated_and_invalid_shards_are_skipped_and_counted(
    tmp_path: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On disk and over http; the run continues with the others, and one line counts the skipped ones."""
    write_shards(tmp_path, 6)
    whole = (tmp_path / "001.tar").read_bytes()
    (tmp_path / "001.tar").write_bytes(whole[: len(whole) // 2 + 100])
    (tmp_path / "002.tar").write_bytes(b"not a tar file" * 1000)
    (tmp_path / "003.tar").write_bytes(b"")
    on_disk = WebDatasetSource(str(tmp_path / "{000..005}.tar"))
    over_http = WebDatasetSource(f"{server}/{{000..007}}.tar")
    problems, remote_problems = SkippedImages(count_once=True), SkippedImages(count_once=True)
    found = captions(on_disk, problems)
    assert {int(caption) // 8 for caption in found} == {0, 1, 4, 5}
    assert captions(over_http, remote_problems) == found
    assert problems.counts["shards damaged"] >= 2
    assert remote_problems.counts == {**problems.counts, "shards missing": 2}
    data = data_of(tmp_path, val_fraction=0, epoch_kimg=0.064)
    data.source = over_http
    with caplog.at_level(logging.WARNING):
        assert len(list(islice(data.train_dataloader(), 17))) == 16
    lines = [record.getMessage() for record in caplog.records if "skipped so far" in record.getMessage()]
    assert len(lines) == 1
    assert f"2 shards missing ({server}/00" in lines[0]
    assert "shards damaged (" in lines[0]


def test_workers_read_over_http_after_the_main_process_has(tmp_path: Path, server: str) -> None:
    """fsspec uses a background thread, which does not exist in a forked worker."""
    write_shards(tmp_path, 5)
    Flaky.cut = {f"{i:03}.tar": 1 for i in range(5)}
    data = data_of(tmp_path, num_workers=2, epoch_kimg=0.032)
    data.source = WebDatasetSource(f"{server}/{{000..004}}.tar")
    assert data.held_out_captions() == [str(n) for n in range(32, 40)]
    found = [int(caption) for batch in data.train_dataloader() for caption in batch.captions]
    assert sorted(found) == list(range(32))


def test_a_shard_of_an_unavailable_server_counts_as_damaged(tmp_path: Path, server: str) -> None:
    write_shards(tmp_path, 1)
    Flaky.busy = {"000.tar": 10**6}
    problems = SkippedImages()
    assert captions(WebDatasetSource(f"{server}/000.tar", retries=2), problems) == []
    assert problems.counts == {"shards damaged": 1}
    assert Flaky.asked.count("000.tar") == 3


def test_addresses_of_object_stores_are_listed_and_read(tmp_path: Path) -> None:
    """With fsspec's memory:// in place of s3://."""
    write_shards(tmp_path, 3)
    for file in tmp_path.glob("*.tar"):
        with fsspec.open(f"memory://bucket/{file.name}", "wb") as out:
            out.write(file.read_bytes())
    source = WebDatasetSource("memory://bucket/*.tar")
    assert [shard.rsplit("/", 1)[-1] for shard in source.shards()["train"]] == [
        "000.tar",
        "001.tar",
        "002.tar",
    ]
    assert captions(source) == captions(WebDatasetSource(str(tmp_path)))
    with pytest.raises(UserError, match=r"memory://bucket/x\*\.tar matches no shards"):
        WebDatasetSource("memory://bucket/x*.tar").shards()


def test_reading_resumes_at_the_same_offset_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(range(256)) * 40
    fsspec.filesystem("memory").pipe("/numbers", content)
    file = RemoteFile("memory://numbers", retries=1)
    first = file.read(1000)
    assert file._file is not None
    file._file.close()
    rest = io.BufferedReader(file, 700).read()
    assert first + rest == content


def test_a_missing_package_and_an_unknown_protocol_give_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(UserError, match="the protocol nowhere:// is not supported"):
        WebDatasetSource("nowhere://bucket/a.tar").shards()
    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(UserError, match=r"^s3://bucket/a.tar needs the package s3fs: pip install s3fs$"):
        WebDatasetSource("s3://bucket/a.tar").shards()
