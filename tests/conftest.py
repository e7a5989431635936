from __future__ import annotations

import logging
import os
from pathlib import Path

# Before any import of it: a forgotten download fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On models as small as these a second thread gains little, and waits for long where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Of what fails unexpectedly, a test shows all.
os.environ.setdefault("C2C_TRACEBACK", "1")

import datasets
import pytest

from tests.training.runs import BASE, SMALL, Run, command, newest


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave nothing behind, and never see what another one read."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which nothing is yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["c2c_lightning"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def lightning_propagates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning keeps its log from the root logger, where `caplog` listens, if nothing listened when it was imported."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)


@pytest.fixture(scope="session")
def fit(tmp_path_factory):
    """Runs `fit` on the built-in pair in a working folder of its own; returns its `Run`."""

    def run(*args: str, workspace: Path | None = None, tracking_uri: str | None = None) -> Run:
        workspace = workspace or tmp_path_factory.mktemp("workspace")
        command(workspace, "fit", "--config", BASE, *SMALL, *args, tracking_uri=tracking_uri)
        return newest(workspace)

    return run
