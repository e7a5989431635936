"""Which trials can share their prefill is told by their configurations."""

import copy

import pytest

from c2c_lightning.sweep.configuration import differing_keys, sharable_key

CONFIG = {
    "seed_everything": 42,
    "model": {"receiver": "r", "sharers": ["s"], "layers": "all", "gate": {"kind": "learned"}},
    "data": {"class_path": "NanoData", "init_args": {"batch_size": 64}},
    "trainer": {"max_steps": 300, "default_root_dir": "a", "logger": None},
}


def changed(key, value):
    config = copy.deepcopy(CONFIG)
    *path, last = key.split(".")
    inner = config
    for name in path:
        inner = inner[name]
    inner[last] = value
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.fuser", {"class_path": "C2CFuser", "init_args": {"hidden": 8}}),
        ("model.gate", {"kind": "open"}),
        ("model.layers", "last:2"),
        ("model.layer_map", {0: 1}),
        ("model.optimizer", {"lr": 0.1}),
        ("model.prompt_store", {"folder": "prompts"}),
        ("trainer.default_root_dir", "b"),
        ("ckpt_path", None),
    ],
)
def test_trials_that_differ_in_the_fuser_and_its_gating_are_sharable(key, value):
    assert sharable_key(changed(key, value)) == sharable_key(CONFIG)
    assert differing_keys([CONFIG, changed(key, value)]) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed_everything", 1),
        ("model.receiver", "other"),
        ("model.sharers", ["s", "s"]),
        ("data.init_args.batch_size", 32),
        ("trainer.max_steps", 100),
        ("trainer.precision", "bf16-mixed"),
    ],
)
def test_trials_that_differ_in_anything_else_are_not_and_the_key_is_named(key, value):
    assert sharable_key(changed(key, value)) != sharable_key(CONFIG)
    assert differing_keys([CONFIG, changed(key, value)]) == [key]


def test_loggers_may_name_their_runs():
    loggers = [{"class_path": "MLflowTracker", "init_args": {"run_name": n, "experiment": "c2c"}} for n in "ab"]
    first, second = (changed("trainer.logger", logger) for logger in loggers)
    assert sharable_key(first) == sharable_key(second)
    loggers[1]["init_args"]["experiment"] = "other"
    assert differing_keys([first, second]) == ["trainer.logger.init_args.experiment"]


def test_several_loggers_may_name_their_runs_each():
    named = [[{"class_path": "CSVLogger", "init_args": {"save_dir": n}}, {"class_path": "Other"}] for n in "ab"]
    assert differing_keys([changed("trainer.logger", loggers) for loggers in named]) == []
    named[1][1]["class_path"] = "Another"
    assert differing_keys([changed("trainer.logger", loggers) for loggers in named]) == ["trainer.logger.1.class_path"]
