"""python -m c2c_lightning.nano build"""

from __future__ import annotations

from jsonargparse import auto_cli

from c2c_lightning.errors import told
from c2c_lightning.nano.build import build

with told("nano"):
    auto_cli({"build": build}, prog="python -m c2c_lightning.nano")
