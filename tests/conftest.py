"""What all tests share: no network, no user's cache, and the networks' shapes checked at every call."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.helpers.typecheck import check_calls

pytest_plugins = ["tests.helpers.runs", "tests.helpers.hub"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
check_calls()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoded captions and statistics of the tests stay out of the user's cache; subprocesses inherit it."""
    os.environ["IMAGEN_PL_CACHE"] = str(tmp_path_factory.mktemp("imagen_pl_cache"))
    os.environ["WANDB_DATA_DIR"] = str(tmp_path_factory.mktemp("wandb_data"))  # copies of artifacts


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tiny networks, where a second thread makes it slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    """A test that changes the number of threads does not change the rounding of those after it."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
