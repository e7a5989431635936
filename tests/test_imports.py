"""Imports point down: fuser <- models <- formats <- communicator <- data, training, evaluation <- sweep <- cli."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "c2c_lightning"
# What each part may import of the others, and which libraries it must not know.
MAY_IMPORT = {
    "errors.py": set(),
    "files.py": set(),
    "nested.py": set(),
    "drawing.py": set(),
    "runs.py": {"files"},
    "tracking.py": {"files", "runs"},
    "fuser": set(),
    "mapper": {"fuser"},
    "nano": set(),
    "models": {"files", "fuser", "mapper"},
    "formats": {"files", "fuser", "mapper", "models", "runs"},
    "communicator.py": {"files", "formats", "fuser", "mapper", "models"},
    "data": {"files", "models", "nano"},
    "training": {"communicator", "files", "formats", "fuser", "mapper", "models", "nested", "runs", "tracking"},
    "evaluation": {
        *("communicator", "data", "drawing", "files", "formats", "fuser", "mapper", "models", "nano", "runs"),
        "tracking",
    },
    "sweep": {"drawing", "evaluation", "files", "fuser", "models", "nested", "runs", "tracking", "training"},
    "cli": {
        "communicator",
        "data",
        "evaluation",
        "files",
        "formats",
        "fuser",
        "models",
        "nested",
        "runs",
        "sweep",
        "tracking",
        "training",
    },
}
ENTRANCES = {"__init__.py", "__main__.py"}
MUST_NOT_KNOW = {
    "fuser": {"lightning", "mlflow", "transformers"},
    "mapper": {"lightning", "mlflow", "transformers"},
    "models": {"lightning", "mlflow"},
    "formats": {"lightning", "mlflow"},
    "communicator.py": {"lightning", "mlflow"},
    "drawing.py": {"torch"},
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
                assert pieces[1] in MAY_IMPORT[part] | {part.removesuffix(".py"), "errors"}, f"{file} imports {name}"
            assert pieces[0] not in MUST_NOT_KNOW.get(part, ()), f"{file} imports {name}"


def test_every_part_has_its_place_in_the_order():
    parts = {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")}
    files = {file.name for file in PACKAGE.glob("*.py")} - ENTRANCES
    assert parts | files == MAY_IMPORT.keys()
    names = {part.removesuffix(".py") for part in MAY_IMPORT}
    assert set().union(*MAY_IMPORT.values()) <= names
    graphlib.TopologicalSorter({part.removesuffix(".py"): below for part, below in MAY_IMPORT.items()}).prepare()


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--config", "wrong.yaml"],
        ["sweep", "--config", "wrong_space.yaml"],
        ["swep"],
        ["sweep", "--space={}"],
        ["fit", "--model.recever=x"],
        ["fit", "--config", "wrong_fit.yaml"],
        ["test", "--trainer.acelerator=cpu"],
        ["read", "--fuser=last", "--text=nowhere.txt", "--out=a.cache"],
    ],
    ids=" ".join,
)
def test_a_typo_is_told_before_anything_is_imported_that_takes_seconds(arguments, tmp_path):
    (tmp_path / "wrong.yaml").write_text("space: {model.layers: {grid: [all]}}\ntrails: 1\n")
    (tmp_path / "wrong_space.yaml").write_text("space: {model.layers: {gird: [all]}}\n")
    (tmp_path / "wrong_fit.yaml").write_text("model: {gate: {kynd: open}}\n")
    code = f"""
import sys
from c2c_lightning.cli.commands import main
try:
    main({arguments})
except SystemExit as refused:
    assert str(refused.code).startswith("error: "), refused.code
    heavy = {{"lightning", "mlflow", "optuna", "pandas", "ray", "torch", "transformers"}} & set(sys.modules)
    assert not heavy, heavy
else:
    assert False, "it was not refused"
"""
    path = {"PYTHONPATH": str(PACKAGE.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=path)


def test_drawing_imports_neither_torch_nor_anything_of_ours():
    code = """
import sys, c2c_lightning.drawing
ours = {name for name in sys.modules if name.startswith("c2c_lightning.")}
assert ours == {"c2c_lightning.drawing"}, ours
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_what_follows_a_trial_on_a_cluster_is_light():
    """A machine runs one for each trial beside its training process."""
    heavy = "{'torch', 'transformers', 'lightning', 'mlflow'}"
    code = f"import sys, c2c_lightning.sweep.runner; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
