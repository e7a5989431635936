"""What an answer depends on: settings and questions, by their digests."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import asdict
from typing import Any

from c2c_lightning.evaluation.benchmarks import Benchmark
from c2c_lightning.files import json_digest
from c2c_lightning.formats.config import located
from c2c_lightning.formats.fuser_folder import fingerprint, read_fuser
from c2c_lightning.models.identity import fingerprint_of_files

# Fuser and models count by their weights, not by their paths.
CANNOT = {"model": ("fuser", "receiver", "sharers", "trust_remote_code"), "data": ("batch_size",)}


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
    model = settings["model"]
    config, state = read_fuser(model["fuser"], model.get("receiver"), model.get("sharers"))
    config = located(config, model["fuser"])
    # Receiver and sharers by what their folders hold: one that was trained on under its old name answers anew.
    models = [fingerprint_of_files(name) for name in (config["receiver"], *config["sharers"])]
    return json_digest([fingerprint(config, state), models, counted, sources(counted)])


def sources(settings: Any) -> list[str]:
    """The code of the classes that settings name and that are not ours, for an edit of it changes answers too."""
    if isinstance(settings, list):
        return [source for value in settings for source in sources(value)]
    if not isinstance(settings, dict):
        return []
    found = sources(list(settings.values()))
    name = settings.get("class_path")
    if isinstance(name, str) and not name.startswith(f"{__package__.partition('.')[0]}."):
        found.append(inspect.getsource(importlib.import_module(name.rpartition(".")[0])))
    return found


def questions_digest(benchmark: Benchmark) -> str:
    """The same for benchmarks that ask the same questions, by the same prompts, after the same exemplars."""
    items = [*benchmark.items(), *(benchmark.exemplar_items() if benchmark.exemplars else [])]
    asked = [[asdict(item), benchmark.messages(item), benchmark.response(item)] for item in items]
    return json_digest([asdict(benchmark.prompt), asked])
