import csv
from pathlib import Path

from imagen_pl.callbacks.csv_logger import MetricsCSV


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_per_image_count_with_images_seen_first(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path / "run")
    log.log_metrics({"train/d_loss": 1.5}, 64)
    log.log_metrics({"val/fid": 200.0}, 64)
    log.log_metrics({"train/d_loss": 1.25, "train/g_loss": 3.0}, 128)
    log.finalize("success")
    first, second = rows(tmp_path / "run")
    assert next(iter(first)) == "images_seen"
    assert (first["images_seen"], first["train/d_loss"], first["val/fid"]) == ("64", "1.5", "200.0")
    assert (second["images_seen"], second["train/g_loss"], second["val/fid"]) == ("128", "3.0", "")


def test_resumed_run_appends_and_replaces_repeated_rows(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path)
    for clock in (64, 128, 192):
        log.log_metrics({"a": clock}, clock)
    log.finalize("failed")
    log = MetricsCSV(tmp_path)
    log.log_metrics({"a": -128, "b": 1.0}, 128)
    log.finalize("success")
    assert [(row["images_seen"], row["a"], row["b"]) for row in rows(tmp_path)] == [
        ("64", "64", ""),
        ("128", "-128", "1.0"),
    ]


def test_run_without_values_does_not_change_the_file(tmp_path: Path) -> None:
    MetricsCSV(tmp_path / "run").finalize("failed")
    assert not (tmp_path / "run").exists()
