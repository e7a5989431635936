"""The keys that are read from source are those that the parser knows."""

import importlib
import inspect

import pytest

from c2c_lightning.cli.parser import SECTIONS, arguments, check_keys

PLACES = sorted({place for sections in SECTIONS.values() for place in sections.values()})


@pytest.mark.parametrize(("package", "file", "name"), PLACES)
def test_the_keys_that_the_source_states_are_those_of_the_class(package, file, name):
    module = importlib.import_module(f"{package}.{file.removesuffix('.py').replace('/', '.')}")
    assert arguments(package, file, name) == set(inspect.signature(getattr(module, name)).parameters)


def test_what_the_parser_has_to_judge_is_left_to_it(tmp_path):
    (tmp_path / "strange.yaml").write_bytes(b"\xff")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    files = [f"--config={tmp_path / name}" for name in ("strange.yaml", "list.yaml", "none.yaml")]
    check_keys(
        "fit", [*files, "--trainer.callbacks+=Mine", "--data.anything=1", "--model.fuser.init_args.mine=2", "-c"]
    )
