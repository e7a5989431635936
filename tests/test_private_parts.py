"""Private parts of other libraries that we reach into: all are in one table, and all are still there.

An upgrade that moves one fails here by name, with what it was for, and pyproject.toml keeps versions below the next one.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

import c2c_lightning

PROJECT = Path(__file__).parents[1]


class Part(NamedTuple):
    owner: str  # import path of a module or class
    name: str  # of its attribute, or of one that its methods set on self
    why: str


PARTS = [
    Part("diskcache.core", "EVICTION_POLICY", "stored prompts that are in use do not give way"),
    Part("diskcache.core", "MODE_BINARY", "nothing but bytes is read back from a prompt store"),
    Part("argparse.ArgumentParser", "_actions", "which options there are, to say which one was meant"),
    Part(
        "lightning.fabric.strategies.fsdp", "_move_torchmetrics_to_device", "FSDP1 sets a module up as Lightning does"
    ),
    Part("lightning.fabric.strategies.fsdp", "_setup_activation_checkpointing", "the same"),
    Part("lightning.fabric.utilities.device_dtype_mixin", "_update_properties", "the same"),
    Part("lightning.fabric.utilities.load", "_METADATA_FILENAME", "what a folder of a sharded checkpoint has"),
    Part("lightning.fabric.utilities.load", "_load_distributed_checkpoint", "a sharded checkpoint made one file"),
    Part("lightning.pytorch.cli.LightningCLI", "_parse_ckpt_path", "what is typed wins over the checkpoint"),
    Part("lightning.pytorch.cli.LightningCLI", "_parser", "a configuration as text, without a trainer"),
    Part("lightning.pytorch.cli.LightningCLI", "_run_subcommand", "one trial of several is built, not run"),
    Part("lightning.pytorch.cli.LightningCLI", "_subcommand_parsers", "a configuration as text, before it is built"),
    Part("lightning.pytorch.core.optimizer.LightningOptimizer", "_optimizer", "the state of a sharded optimizer"),
    Part("lightning.pytorch.loggers.MLFlowLogger", "_experiment_id", "to tag the experiment"),
    Part("lightning.pytorch.loggers.MLFlowLogger", "_experiment_name", "asking for `name` would open the run"),
    Part("lightning.pytorch.loggers.MLFlowLogger", "_initialized", "whether the run was opened"),
    Part("lightning.pytorch.loggers.MLFlowLogger", "_mlflow_client", "asking for `experiment` would open the run"),
    Part("lightning.pytorch.loggers.MLFlowLogger", "_run_id", "asking for `run_id` would open the run"),
    Part("lightning.pytorch.loops.fit_loop._FitLoop", "_should_accumulate", "whether an optimizer step has ended"),
    Part("lightning.pytorch.strategies.FSDPStrategy", "_activation_checkpointing_kwargs", "FSDP1 sets up as Lightning"),
    Part("lightning.pytorch.strategies.FSDPStrategy", "_setup_model", "frozen models stay whole, fusers are sharded"),
    Part("lightning.pytorch.strategies.ModelParallelStrategy", "_data_parallel_size", "all ranks share out the data"),
    Part("lightning.pytorch.strategies.ModelParallelStrategy", "_setup_distributed", "the mesh that FSDP2 shards over"),
    Part("lightning.pytorch.Trainer", "_default_root_dir", "all ranks take the folder that rank 0 named"),
    Part("lm_eval.api.task.ConfigurableTask", "_filters", "a response is read as the task reads it"),
    Part("lm_eval.api.task.ConfigurableTask", "_metric_fn_list", "which metrics a task has"),
    Part("lm_eval.api.model.TemplateLM", "_encode_pair", "a continuation is encoded as our prompts are"),
    Part("lm_eval.api.model.TemplateLM", "_loglikelihood_tokens", "asked by the base class, so ours to give"),
    Part("optuna.trial.FrozenTrial", "_trial_id", "to write to a trial that another process began"),
    Part("torch", "_dynamo", "how often layers may be compiled anew"),
    Part("torch._dynamo.config", "recompile_limit", "the same"),
    Part(
        "torch.distributed.checkpoint.filesystem", "_StorageInfo", "a sharded checkpoint is read by known classes alone"
    ),
    Part("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING", "the same"),
    Part("torch.serialization", "_get_layout", "the same"),
    Part("torch.nn.Module", "_compiled_call_impl", "whether a module was compiled in place"),
    Part("torch.nn.Module", "_forward_hooks", "whether anybody watches a model's layers"),
    Part("torch.nn.Module", "register_forward_pre_hook", "logits are computed at some positions only"),
    Part("transformers.DynamicCache", "batch_repeat_interleave", "beams on a filled cache"),
    Part("transformers.cache_utils.DynamicLayer", "lazy_initialization", "a cache is made of stored keys and values"),
    Part("transformers.cache_utils.DynamicLayer", "keys", "the layers of a cache are read and written"),
    Part("transformers.cache_utils.DynamicLayer", "values", "the same"),
    Part("transformers.cache_utils.Cache", "layers", "the same"),
    Part("transformers.generation.GenerationMixin", "_prepare_generation_config", "fills up from generation_config"),
    Part("transformers.integrations.gguf.reader", "_mapped", "whether a GGUF file is whole"),
    Part("transformers.integrations.gguf.reader", "_read_metadata", "the same"),
    Part("transformers.integrations.gguf.reader", "_read_tensor_table", "the same"),
    Part("transformers.integrations.gguf.gguf_tokenizer_mapping", "GGUF_PRE_TOKENIZER_SPLITS", "words cut otherwise"),
    Part("transformers.modeling_gguf_pytorch_utils", "TENSOR_PROCESSORS", "which weights its reader passes over"),
    Part("transformers.modeling_gguf_pytorch_utils", "get_gguf_hf_weights_map", "the same"),
    Part("transformers.models.llama.modeling_llama.LlamaRotaryEmbedding", "inv_freq", "how fast a model's keys turn"),
    Part("transformers.models.llama.modeling_llama.LlamaRotaryEmbedding", "rope_type", "whether texts change that"),
    Part("transformers.models.gptj.modeling_gptj.GPTJAttention", "embed_positions", "the same, of GPT-J and CodeGen"),
    Part("transformers.quantizers.AutoHfQuantizer", "supports_quant_method", "unknown quantisations are refused"),
    Part("transformers.PretrainedConfig", "_attn_implementation", "stored prompts are those of one attention kernel"),
]
PUBLIC = {"_replace", "_asdict", "_fields"}  # of named tuples, which have to tell methods from fields


def find(path: str) -> object:
    """A module, or a class in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.owner}.{part.name}")
def test_every_private_part_that_we_use_is_still_there(part):
    owner = find(part.owner)
    if hasattr(owner, part.name):
        return
    code = "".join(inspect.getsource(c) for c in inspect.getmro(owner) if c.__module__ != "builtins")
    assert re.search(rf"self\.{part.name}\b|\"{part.name}\"", code), f"{part}: it has moved"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_other_private_part_is_used():
    named = {part.name for part in PARTS} | PUBLIC
    trees = {file: ast.parse(file.read_text()) for file in (PROJECT / "c2c_lightning").rglob("*.py")}
    nodes = [(file, node) for file, tree in trees.items() for node in ast.walk(tree)]
    ours = {node.name for _, node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))} | {
        node.attr
        for _, node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    for file, node in nodes:
        used = set()
        if isinstance(node, ast.Attribute) and node.attr not in ours:
            used = {node.attr}
        elif isinstance(node, ast.Import):
            used = {piece for alias in node.names for piece in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith("c2c_lightning"):
            used = {alias.name for alias in node.names} | set(str(node.module).split("."))
        strange = {name for name in used if is_private(name)} - named
        assert not strange, f"{file}:{node.lineno}: {strange} is not in the table of tests/test_private_parts.py"


def test_no_other_private_method_is_overridden():
    named = {part.name for part in PARTS}
    for module in pkgutil.walk_packages(c2c_lightning.__path__, "c2c_lightning."):
        if module.name.endswith("__main__"):
            continue
        classes = vars(importlib.import_module(module.name)).values()
        for c in [c for c in classes if inspect.isclass(c) and c.__module__ == module.name]:
            methods = {name for name, value in vars(c).items() if inspect.isfunction(value) and is_private(name)}
            for base in [base for base in c.__mro__ if not base.__module__.startswith("c2c_lightning")]:
                strange = methods & vars(base).keys() - named
                assert not strange, f"{c} overrides {strange} of {base}: put it into the table of private parts"


def test_every_library_with_a_private_part_in_use_has_an_upper_bound():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["harness"]]
    bounded = {re.match(r"[\w-]+", text)[0].replace("-", "_") for text in wanted if "<" in text}
    libraries = {part.owner.partition(".")[0] for part in PARTS} - {"argparse"}
    assert libraries <= bounded
