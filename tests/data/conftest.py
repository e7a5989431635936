from __future__ import annotations

from pathlib import Path

import datasets
import pytest

from c2c_lightning.communication import Aligner, load_aligner


@pytest.fixture(scope="session")
def aligner() -> Aligner:
    return load_aligner("c2c_lightning/nano/receiver", ["c2c_lightning/nano/sharer"])


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests leave nothing behind, and never see what another one read."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")


@pytest.fixture
def gsm8k() -> Path:
    return Path(__file__).parent / "gsm8k"
