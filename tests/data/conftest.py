from __future__ import annotations

from pathlib import Path

import pytest

from c2c_lightning.models import Aligner, load_aligner


@pytest.fixture(scope="session")
def aligner() -> Aligner:
    return load_aligner("c2c_lightning/nano/receiver", ["c2c_lightning/nano/sharer"])


@pytest.fixture
def gsm8k() -> Path:
    return Path(__file__).parent / "gsm8k"
