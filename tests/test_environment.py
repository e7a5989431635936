"""One list of versions, however the project is installed."""

import re
import tomllib
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[1]


def pins(lines: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([\w.-]+)==([\w.]+)", line.strip()) for line in lines)
    return {match[1].lower().replace("_", "-"): match[2] for match in found if match}


def test_conda_users_get_the_versions_that_were_tested():
    conda = yaml.safe_load((PROJECT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    constraints = pins((PROJECT / "constraints.txt").read_text().splitlines())
    assert pins(pip) == constraints
    assert constraints["torch"] == "2.13.0"
    assert constraints["lightning"] not in ("2.6.2", "2.6.3")


def test_every_dependency_is_pinned():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {re.match(r"[\w.-]+", dependency)[0].lower().replace("_", "-") for dependency in wanted}
    names.discard("c2c-lightning")  # one extra takes in another
    assert names <= pins((PROJECT / "constraints.txt").read_text().splitlines()).keys()
