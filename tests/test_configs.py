"""Every shipped configuration parses, and what it names can be built."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from c2c_lightning.cli import fit as fit_cli
from c2c_lightning.cli import test as test_cli
from c2c_lightning.cli.sweep import build, read_sweep
from c2c_lightning.data.source import Source
from c2c_lightning.evaluation.asking.module import Evaluation
from c2c_lightning.sweep.configuration import check_configurations
from c2c_lightning.sweep.driver import complete
from c2c_lightning.sweep.space import Space
from c2c_lightning.training import FSDP1, FSDP2, C2CModule

PROJECT = Path(__file__).parents[1]
CONFIGS = [*sorted((PROJECT / "conf").glob("*.yaml")), *sorted((PROJECT / "conf" / "real").rglob("*_from_*.yaml"))]
SWEEPS = sorted((PROJECT / "sweeps").glob("*.yaml"))
EVALUATIONS = [
    *sorted((PROJECT / "conf" / "eval").glob("*.yaml")),
    *sorted((PROJECT / "conf" / "real").rglob("evaluation.yaml")),
]


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr("sys.argv", ["c2c_lightning"])
    monkeypatch.setenv("REAL_DATA", "questions")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_model_part_can_be_built_with_tiny_models_in_place_of_hub_names(path):
    written = yaml.safe_load(path.read_text())
    sharers = written["model"]["sharers"]
    built = fit_cli.C2CCLI(
        **fit_cli.WIRING,
        run=False,
        args=[
            f"--config={path}",
            "--model.receiver=c2c_lightning/nano/receiver",
            f"--model.sharers={['c2c_lightning/nano/sharer'] * len(sharers)}",
            "--model.fuser.init_args.hidden=16",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            *([] if "data" in written else ["--data=NanoData"]),
        ],
    )
    assert isinstance(built.model, C2CModule)
    built.model.configure_model()
    fusers = built.model.communicator.fusers
    assert fusers.fused_layers or fusers.mapper


@pytest.mark.parametrize("folder", ["real", "real/hub"])
def test_the_real_pair_is_trained_on_questions_as_its_evaluation_asks_them(folder):
    args = [f"--config=conf/{folder}/{name}.yaml" for name in ("smollm2_from_gemma3", "questions")]
    pair = ["--model.receiver=c2c_lightning/nano/receiver", "--model.sharers=['c2c_lightning/nano/sharer']"]
    built = fit_cli.C2CCLI(**fit_cli.WIRING, run=False, args=[*args, *pair])
    args = [f"--config=conf/{folder}/evaluation.yaml"]
    asked = test_cli.EvaluationCLI(**test_cli.WIRING, run=False, args=args).datamodule.benchmarks
    trained = built.datamodule.benchmark
    assert {(each.prompt.name, each.answer_mode) for each in asked} == {(trained.prompt.name, trained.answer_mode)}
    assert trained.by_likelihood
    assert built.trainer.default_root_dir == "runs/real"


def test_the_real_pair_is_told_of_other_passages_than_it_is_asked_about(monkeypatch):
    monkeypatch.setenv("REAL_TEXTS", "texts")
    monkeypatch.setattr(Source, "check", lambda self: None)  # the passages are the user's
    args = ["--config=conf/private.yaml", "--config=conf/real/told.yaml"]
    data = fit_cli.C2CCLI(**fit_cli.WIRING, run=False, args=args).datamodule
    args = ["--config=conf/real/told_evaluation.yaml"]
    [asked] = test_cli.EvaluationCLI(**test_cli.WIRING, run=False, args=args).datamodule.benchmarks
    assert data.benchmark.context == data.val_benchmark.context == asked.context == "sharer"
    assert data.val_benchmark.path == asked.path
    assert data.val_benchmark.split == asked.split != data.benchmark.split


def test_one_command_hands_over_passages_between_the_real_pair_or_says_which_it_needs(tmp_path):
    def make(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", "told", *args, f"REAL_TEXTS={tmp_path}"], capture_output=True, text=True)

    refused = make()
    assert refused.returncode
    assert refused.stderr.startswith(f"error: '{tmp_path}/nq_oracle.jsonl' is not there")
    (tmp_path / "nq_oracle.jsonl").touch()
    configs = re.findall(r"--config (\S+)", make("--dry-run").stdout)
    assert len(configs) == 3
    assert all((PROJECT / config).is_file() for config in configs)


@pytest.mark.parametrize(("name", "strategy"), [("fsdp2", FSDP2), ("fsdp", FSDP1)])
def test_a_strategy_is_laid_over_a_configuration_and_keeps_its_precision(name, strategy):
    built = fit_cli.C2CCLI(
        **fit_cli.WIRING,
        run=False,
        args=[
            "--config=conf/base.yaml",
            f"--config=conf/trainer/{name}.yaml",
            "--trainer.devices=2",
            "--trainer.precision=bf16-mixed",
        ],
    )
    assert isinstance(built.trainer.strategy, strategy)
    assert built.trainer.world_size == 2
    assert built.trainer.precision == "bf16-mixed"
    assert built.trainer.max_steps == 300


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_asks_a_question_that_its_configurations_can_answer(path):
    assert path.read_text().startswith("# Question: ")
    assert "For a real pair: " in path.read_text()
    sweep, name = read_sweep(["--config", str(path)])
    space = Space(sweep.space)
    assert complete(sweep, space).trials >= 2
    check_configurations(sweep, space, build)
    assert name == path.stem


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_every_evaluation_has_its_benchmarks_methods_and_analyses(path):
    written = yaml.safe_load(path.read_text())
    args = [f"--config={path}", "--trainer.accelerator=cpu"]
    built = test_cli.EvaluationCLI(**test_cli.WIRING, run=False, args=args)
    assert isinstance(built.model, Evaluation)
    classes = [type(benchmark).__name__ for benchmark in built.datamodule.benchmarks]
    assert classes == [benchmark["class_path"] for benchmark in written["data"]["benchmarks"]]
    assert {"receiver", "c2c", "wrong_question", "zero_update", "mean_update", "calibrated_receiver"} <= {
        method.name for method in built.model.compared
    }
    analyses = [type(callback).__name__ for callback in built.trainer.callbacks]
    assert {callback["class_path"] for callback in written["trainer"]["callbacks"]} <= set(analyses)
