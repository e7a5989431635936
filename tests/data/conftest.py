from __future__ import annotations

from pathlib import Path

import pytest
from some_data import word_problems, write_jsonl

from c2c_lightning.models import Aligner, load_aligner


@pytest.fixture(scope="session")
def aligner() -> Aligner:
    return load_aligner("c2c_lightning/nano/receiver", ["c2c_lightning/nano/sharer"])


@pytest.fixture(scope="session")
def gsm8k(tmp_path_factory) -> Path:
    """A folder of 60 problems to train on and 20 to validate on."""
    folder = tmp_path_factory.mktemp("gsm8k")
    for split, number in (("train", 60), ("test", 20)):
        write_jsonl(folder / f"{split}.jsonl", word_problems(split, number))
    return folder
