"""The keys that are read from source are those that the parser knows."""

import importlib
import inspect
import os
import re
import subprocess
import sys

import pytest

from c2c_lightning.cli.parser import DATA, SECTIONS, arguments, check_keys
from c2c_lightning.files import PROJECT

PLACES = sorted({place for sections in (*SECTIONS.values(), DATA) for place in sections.values()})


@pytest.mark.parametrize(("package", "file", "name"), PLACES)
def test_the_keys_that_the_source_states_are_those_of_the_class(package, file, name):
    module = importlib.import_module(f"{package}.{file.removesuffix('.py').replace('/', '.')}")
    assert arguments(package, file, name) == set(inspect.signature(getattr(module, name)).parameters)


def test_what_the_parser_has_to_judge_is_left_to_it(tmp_path):
    (tmp_path / "strange.yaml").write_bytes(b"\xff")
    (tmp_path / "list.yaml").write_text("[1, 2]")
    files = [f"--config={tmp_path / name}" for name in ("strange.yaml", "list.yaml")]
    of_mine = ["--data=mine.Data", "--data.anything=1", "--model.fuser.init_args.mine=2", "--trainer.callbacks+=Mine"]
    of_hub = ["--model.receiver=owner/name", "--model.sharers=[c2c_lightning/nano/sharer, '${model.receiver}']"]
    check_keys("fit", [*files, "--config={model: {layers: all}}", *of_mine, *of_hub, "-c"])
    check_keys("fit", ["--data=NanoData", "--data.help=InstructionData"])
    check_keys("fit", ["--data=mine.NanoData", "--data.anything=1", "--data=c2c_lightning.data.NanoData"])
    check_keys("fit", ["--model.receiver=/nowhere", "--model.receiver=owner/name"])  # what is given last counts
    check_keys("fit", ["--data=NanoData", "--data=QuestionData", "--data.benchmark.path=q.csv", "--data.seed=1"])
    check_keys("test", ["--data.benchmarks=[NanoWorld]", "--model.receiver=nowhere", "--model.fuser=owner/name/of"])


MISSPELT = {
    "config": (["--config", "nowhere.yaml"], r"--config 'nowhere\.yaml': no such file"),
    "key of data": (
        ["--data=NanoData", "--data.batch_sice=3"],
        r"data\.batch_sice is no option of NanoData\. Did you mean batch_size",
    ),
    "key of data in a file": (
        ["--config", "data.yaml"],
        r"data\.yaml: data\.init_args\.paht is no option of InstructionData\. Did you mean path",
    ),
    "model": (["--model.receiver", "models/a.gguf"], r"model 'models/a\.gguf': no such folder"),
    "fuser": (["test", "--model.fuser=runs/2026-01-01_00-00-00"], r"fuser 'runs/2026-01-01_00-00-00': no such folder"),
    "models in a file": (["--config", "models.yaml"], r"models\.yaml: model '/nowhere': no such folder"),
}


@pytest.mark.parametrize("fault", MISSPELT)
def test_what_is_misspelt_is_told_before_anything_that_takes_seconds_is_imported(fault, tmp_path):
    (tmp_path / "data.yaml").write_text("data: {class_path: InstructionData, init_args: {paht: x.csv}}")
    (tmp_path / "models.yaml").write_text("model: {sharers: [owner/name, /nowhere]}")
    args, message = MISSPELT[fault]
    code = (
        "import sys; from c2c_lightning.cli.commands import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print(sorted({'torch', 'lightning', 'transformers', 'datasets'} & sys.modules.keys()))"
    )
    args = args if args[0] == "test" else ["fit", *args]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    run = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert re.fullmatch(f"error: .*{message}.*\n", run.stderr)
    assert run.stdout == "[]\n"
