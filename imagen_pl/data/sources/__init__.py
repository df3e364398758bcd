"""Data sources. Imported here, so that YAML can name a source without its module."""

from imagen_pl.data.sources.base import Row, Source, StreamSource
from imagen_pl.data.sources.coco import CocoSource
from imagen_pl.data.sources.emoji import EmojiSource
from imagen_pl.data.sources.folder import FolderSource
from imagen_pl.data.sources.huggingface import HuggingFaceSource
from imagen_pl.data.sources.icons import IconSource
from imagen_pl.data.sources.parquet import ParquetSource
from imagen_pl.data.sources.webdataset import WebDatasetSource

__all__ = [
    "CocoSource",
    "EmojiSource",
    "FolderSource",
    "HuggingFaceSource",
    "IconSource",
    "ParquetSource",
    "Row",
    "Source",
    "StreamSource",
    "WebDatasetSource",
]
