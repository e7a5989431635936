"""What an answer depends on: settings and questions, by their digests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from c2c_lightning.communication.fuser_folder import fingerprint
from c2c_lightning.evaluation.benchmarks import Benchmark

CANNOT = {"model": ("fuser",), "data": ("batch_size",)}  # the fuser counts by its weights, not by its path


def digest(settings: dict[str, Any]) -> str:
    """The same for evaluations whose answers are the same, so that one can go on in the other's folder.

    How many questions are read together, on which devices, and what is drawn in the end does not count.

    Args:
        settings: the whole configuration, as plain values.
    """
    counted = {
        part: {key: value for key, value in settings[part].items() if key not in CANNOT[part]} for part in CANNOT
    }
    counted["precision"] = settings["trainer"]["precision"]
    text = json.dumps([fingerprint(settings["model"]["fuser"]), counted], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def questions_digest(benchmark: Benchmark) -> str:
    """The same for benchmarks that ask the same questions by the same prompts."""
    asked = [[asdict(item), benchmark.messages(item)] for item in benchmark.items()]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
