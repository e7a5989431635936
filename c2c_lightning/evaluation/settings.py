"""Which settings of an evaluation can change an answer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from c2c_lightning.communication.fuser_folder import fingerprint

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
