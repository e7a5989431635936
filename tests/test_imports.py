"""Imports point down: nano, fuser <- communication <- data, training; data <- evaluation; training, evaluation <- sweep;
all <- the command line."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "c2c_lightning"
# What each part may import of the others, and which libraries it must not know.
MAY_IMPORT = {
    "fuser": set(),
    "nano": set(),
    "communication": {"fuser"},
    "data": {"communication", "nano"},
    "training": {"communication", "fuser", "runs", "tracking"},
    "evaluation": {"communication", "data", "fuser", "nano", "runs", "tracking"},
    "sweep": {"communication", "evaluation", "fuser", "messages", "runs", "tracking", "training", "training_cli"},
    "runs.py": set(),
    "tracking.py": set(),
}
MUST_NOT_KNOW = {
    "fuser": {"lightning", "mlflow", "transformers"},
    "communication": {"lightning", "mlflow"},
    "data": {"mlflow"},
    "nano": {"mlflow"},
    "training": set(),
    "evaluation": set(),
    "sweep": {"lightning"},
    "runs.py": {"lightning", "mlflow"},
    "tracking.py": set(),
}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_point_down(part):
    place = PACKAGE / part
    for file in [place] if place.is_file() else place.rglob("*.py"):
        for name in imported(file):
            pieces = name.split(".")
            if pieces[0] == "c2c_lightning":
                assert pieces[1] in MAY_IMPORT[part] | {part, "errors"}, f"{file} imports {name}"
            assert pieces[0] not in MUST_NOT_KNOW[part], f"{file} imports {name}"


def test_every_part_has_its_place_in_the_order():
    parts = {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")}
    assert parts == {part for part in MAY_IMPORT if not part.endswith(".py")}


def test_what_follows_a_trial_on_a_cluster_is_light():
    """A machine runs one for each trial beside its training process."""
    heavy = "{'torch', 'transformers', 'lightning', 'mlflow'}"
    code = f"import sys, c2c_lightning.sweep.shared_trial; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
