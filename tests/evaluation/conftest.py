from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.trained import FEW, Evaluated, evaluate, train


@pytest.fixture(scope="session")
def fuser(tmp_path_factory) -> Path:
    """A fuser that has learned to read the built-in sharer's cache."""
    return train(tmp_path_factory.mktemp("trained"), shuffled=False, steps=100)


@pytest.fixture(scope="session")
def shuffled_fuser(tmp_path_factory) -> Path:
    """A fuser that was trained with the sharer's caches shuffled among questions."""
    return train(tmp_path_factory.mktemp("shuffled"), shuffled=True, steps=50)


@pytest.fixture(scope="session")
def few(fuser, tmp_path_factory) -> Evaluated:
    return evaluate(fuser, tmp_path_factory.mktemp("few"), *FEW)
