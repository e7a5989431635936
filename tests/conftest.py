from __future__ import annotations

import os
from pathlib import Path

# Before any import of it: a forgotten download fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import pytest


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave nothing behind, and never see what another one read."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
