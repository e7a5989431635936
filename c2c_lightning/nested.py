"""Settings within settings, and the dotted keys that users name them by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; an empty mapping is a value, and so is one whose keys are no words, as of a layer map.

    Args:
        settings: nested.
        prefix: what every key begins with, a dot after it; empty for nothing.
    """
    flat = {}
    for key, value in settings.items():
        path = f"{prefix}.{key}" if prefix else key
        nested = isinstance(value, Mapping) and value and all(isinstance(name, str) for name in value)
        flat |= flatten(value, path) if nested else {path: value}
    return flat
