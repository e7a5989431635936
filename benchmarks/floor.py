"""What a train step must spend at least: FLOPs by stage, and the rate at which this device multiplies matrices.

The floor counts a multiplication and an addition as 2 FLOPs and only what no implementation can do without:

- prefill of a frozen model: every linear layer on every token, causal attention, but of the last layer its keys and
  values only, and no vocabulary logits;
- the fuser: forward, and twice that backward, less the gradient of its input, which nobody needs;
- the response: forward; backward by inputs only, since weights are frozen, and below the first fused layer nothing;
- logits at supervised positions, forward and backward.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from c2c_lightning.communicator import Communicator
from c2c_lightning.fuser import C2CFuser
from c2c_lightning.models.loading import kv_shape


def linear_flops(config: PreTrainedConfig) -> tuple[int, int]:
    """FLOPs per token of one layer's linear maps: all of them, and those of keys and values alone."""
    shape = kv_shape(config)
    queries = config.num_attention_heads * shape.head_dim
    keys_values = 2 * config.hidden_size * 2 * shape.features
    others = 2 * config.hidden_size * (2 * queries + 3 * config.intermediate_size)
    return others + keys_values, keys_values


def attention_flops(config: PreTrainedConfig, queries: int, before: int) -> int:
    """FLOPs of one layer's causal attention of some tokens on those `before` them and on themselves."""
    pairs = queries * before + queries * (queries + 1) // 2
    return 2 * 2 * pairs * config.num_attention_heads * kv_shape(config).head_dim


def prefill_flops(config: PreTrainedConfig, batch: int, tokens: int) -> int:
    every, keys_values = linear_flops(config)
    layers = config.num_hidden_layers - 1
    return batch * (layers * (tokens * every + attention_flops(config, tokens, 0)) + tokens * keys_values)


def fuser_flops(fuser: C2CFuser, tokens: int) -> tuple[int, int]:
    """Forward and backward FLOPs on so many tokens."""
    weights = sum(parameter[0].numel() for name, parameter in fuser.named_parameters() if name.endswith("weight"))
    forward = 2 * tokens * weights * fuser.num_groups
    of_input = 2 * tokens * fuser.input.weight.numel()
    return forward, 2 * forward - of_input


def response_flops(config: PreTrainedConfig, batch: int, prompt: int, response: int) -> tuple[int, int]:
    """Forward and backward FLOPs of a response, all of whose tokens are supervised, behind a fused prompt.

    The last prompt token is read with the response. In the first layer only the fused prompt's keys and values have
    a gradient and what comes after the attention; its own projections have none.
    """
    every, keys_values = linear_flops(config)
    attention = attention_flops(config, response, prompt - 1)
    queries = 2 * config.hidden_size * config.num_attention_heads * kv_shape(config).head_dim
    logits = 2 * response * config.hidden_size * config.vocab_size
    layers = config.num_hidden_layers
    forward = layers * (response * every + attention) + logits
    # Attention goes back by queries, keys, values and weights: twice as much as forward.
    backward = layers * (response * every + 2 * attention) - response * (queries + keys_values) + logits
    return batch * forward, batch * backward


def floor_flops(communicator: Communicator, batch: int, prompt: int, response: int) -> dict[str, int]:
    """FLOPs by stage of a train step on prompts without padding."""
    receiver = communicator.models.receiver.config
    fused = [fuser_flops(fuser, batch * (prompt - 1)) for fuser in communicator.fusers]
    forward, backward = response_flops(receiver, batch, prompt, response)
    return {
        "sharer prefill": sum(prefill_flops(sharer.config, batch, prompt) for sharer in communicator.models.sharers),
        "receiver prefill": prefill_flops(receiver, batch, prompt - 1),
        "fusion": sum(flops for flops, _ in fused),
        "response": forward,
        "backward": backward + sum(flops for _, flops in fused),
        "optimizer": 0,
    }


@torch.no_grad()
def matmul_rate(dtype: torch.dtype, device: str, seconds: float = 1.0) -> float:
    """FLOP/s of a linear layer as the models have them, measured now: the best of several rounds."""
    tokens, features = (1024, 1024) if device == "cpu" else (8192, 8192)
    linear = nn.Linear(features, features, bias=False, dtype=dtype, device=device)
    x = torch.randn(tokens, features, dtype=dtype, device=device)
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        start = now(x)
        for _ in range(10):
            linear(x)
        best = max(best, 10 * 2 * tokens * features**2 / (now(x) - start))
    return best


def now(like: Tensor) -> float:
    """Seconds on a clock, when the device of a tensor has done all that it was told."""
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return time.perf_counter()
