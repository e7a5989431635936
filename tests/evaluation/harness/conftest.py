from __future__ import annotations

from functools import partial

import pytest
import torch

from c2c_lightning.communicator import Communicator
from c2c_lightning.evaluation.harness.model import C2CLM
from c2c_lightning.fuser import C2CFuser, GateConfig
from tests.evaluation.harness.some_requests import PAIR, TASKS
from tests.models import tiny


@pytest.fixture(autouse=True)
def in_the_tasks_folder(monkeypatch):
    monkeypatch.chdir(TASKS)  # the data files that the tasks name lie there


@pytest.fixture(scope="session")
def fuser(tmp_path_factory) -> str:
    """A random fuser that changes much."""
    folder = tmp_path_factory.mktemp("fuser")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        factory = partial(C2CFuser, hidden=32, dropout=0.0)
        tiny.between(*PAIR, fuser=factory, gate=GateConfig(kind="open")).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def communicator(fuser) -> Communicator:
    return Communicator.from_pretrained(fuser)


@pytest.fixture(scope="session")
def model(fuser) -> C2CLM:
    return C2CLM(fuser, batch_size=7, device="cpu")
