"""What quantised blocks of GGUF stand for, after the layouts in ggml's ggml-common.h and block_q*."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType as Kind

# Bytes of a block; those of Q8_0, Q4_1 and Q5_0 stand for 32 numbers, those of Q4_K and Q6_K for 256.
SIZES = {Kind.Q8_0: 34, Kind.Q4_1: 20, Kind.Q5_0: 22, Kind.Q4_K: 144, Kind.Q6_K: 210}


def dequantised(data: np.ndarray, kind: Kind) -> np.ndarray:
    """Rows of blocks (rows, bytes) as fp32 numbers (rows, columns)."""
    blocks = np.ascontiguousarray(data).view(np.uint8).reshape(-1, SIZES[kind])
    return KINDS[kind](blocks).astype(np.float32).reshape(len(data), -1)


def half(block: np.ndarray) -> np.ndarray:
    return block.copy().view(np.float16).astype(np.float32)


def nibbles(block: np.ndarray) -> np.ndarray:
    """The low halves of all bytes, then the high halves."""
    return np.concatenate([block & 15, block >> 4], axis=1).astype(np.int32)


def q8_0(b: np.ndarray) -> np.ndarray:
    return half(b[:, :2]) * b[:, 2:].view(np.int8)


def q4_1(b: np.ndarray) -> np.ndarray:
    return half(b[:, :2]) * nibbles(b[:, 4:]) + half(b[:, 2:4])


def q5_0(b: np.ndarray) -> np.ndarray:
    fifth_bits = np.unpackbits(b[:, 2:6], axis=1, bitorder="little").astype(np.int32)
    return half(b[:, :2]) * ((nibbles(b[:, 6:]) | fifth_bits << 4) - 16)


def q4_k(b: np.ndarray) -> np.ndarray:
    first, second, rest = (b[:, at : at + 4].astype(np.int32) for at in (4, 8, 12))  # 6 bits each: 8 scales, 8 minima
    scales = np.concatenate([first & 63, rest & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, rest >> 4 | second >> 6 << 4], axis=1)
    numbers = [nibbles(b[:, at : at + 32]).reshape(-1, 2, 32) for at in range(16, 144, 32)]
    scale, minimum = half(b[:, :2]) * scales, half(b[:, 2:4]) * minima
    return scale[:, :, None] * np.concatenate(numbers, axis=1) - minimum[:, :, None]


def q6_k(b: np.ndarray) -> np.ndarray:
    halves = []
    for low, high in ((0, 128), (64, 160)):  # of 128 numbers each
        two_bits = [b[:, high : high + 32] >> shift & 3 for shift in (0, 2, 4, 6)]
        four_bits = nibbles(b[:, low : low + 64])
        halves.append(four_bits | np.concatenate(two_bits, axis=1).astype(np.int32) << 4)
    scale = half(b[:, 208:]) * b[:, 192:208].view(np.int8)
    return scale[:, :, None] * (np.concatenate(halves, axis=1).reshape(-1, 16, 16) - 32)


KINDS = {Kind.Q8_0: q8_0, Kind.Q4_1: q4_1, Kind.Q5_0: q5_0, Kind.Q4_K: q4_k, Kind.Q6_K: q6_k}
