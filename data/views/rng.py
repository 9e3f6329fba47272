"""SampleRng: random numbers that depend only on (run seed, epoch, sample id, name of the draw).

Each sample of a batch has a 64-bit key; a draw hashes the key with the name of the draw and a counter
(splitmix64). Neither the number of workers nor the layout of batches changes a sample's numbers, and there is no
state to checkpoint. Parameters are drawn on the host, where box corners are needed as integers anyway.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from math import prod

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, Integer, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_HALF, _BELOW_53_BITS = np.uint64(32), np.uint64(11)


def _mix(x: UInt64[np.ndarray, "*S"]) -> UInt64[np.ndarray, "*S"]:
    """Scramble 64-bit words (the finaliser of splitmix64); overflow wraps, as it should."""
    x = x ^ (x >> _SHIFTS[0])
    x *= _MIX_1
    x ^= x >> _SHIFTS[1]
    x *= _MIX_2
    x ^= x >> _SHIFTS[2]
    return x


@lru_cache(maxsize=256)
def _counters(shape: tuple[int, ...]) -> UInt64[np.ndarray, "*S"]:
    """Count the draws of a sample, in the words that tell them apart."""
    counters = np.arange(1, prod(shape) + 1, dtype=np.uint64) * _GOLDEN
    counters.flags.writeable = False
    return counters.reshape(shape)


def scale_words(words: UInt64[np.ndarray, "..."], bound: Int64[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
    """Turn random words into int64 in [0, bound), where ``bound`` is int64 and below 2**32.

    Multiplies the upper half; an integer's probability is off by a share of less than bound / 2**32.
    """
    scaled = (words >> _HALF) * bound.view(np.uint64)
    scaled >>= _HALF
    return scaled.view(np.int64)


@lru_cache(maxsize=2**16)
def name_hash(name: str) -> np.uint64:
    """Hash text to 64 bits, the same on every machine and in every process."""
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


class SampleRng:
    """Independent streams for the samples of a batch, each with a key."""

    keys: UInt64[np.ndarray, " B"]

    def __init__(self, keys: Integer[np.ndarray, " B"]) -> None:
        self.keys = np.asarray(keys, dtype=np.uint64)

    @classmethod
    def for_samples(
        cls, seed: int, epochs: Sequence[int] | Integer[np.ndarray, " B"], sample_ids: Sequence[str]
    ) -> "SampleRng":
        """Key each sample by (seed, its epoch, its id)."""
        ids = np.array([name_hash(sample_id) for sample_id in sample_ids], dtype=np.uint64)
        epoch = np.asarray(epochs, dtype=np.uint64)
        return cls(_mix(_mix(ids + np.uint64(seed % 2**64)) + epoch * _GOLDEN + np.uint64(1)))

    def __len__(self) -> int:
        return len(self.keys)

    def fold(self, name: str | int) -> "SampleRng":
        """Return the stream of one named use, such as a view's number or an augmentation's name."""
        word = name + 1 if isinstance(name, int) else int(name_hash(name))
        return SampleRng(_mix(self.keys + np.uint64(word * int(_GOLDEN) % 2**64)))

    def take(self, index: Integer[np.ndarray, " K"] | Bool[np.ndarray, " B"]) -> "SampleRng":
        """Return the streams of some of the samples."""
        return SampleRng(self.keys[index])

    def words(self, *shape: int) -> UInt64[np.ndarray, "B *S"]:
        """Draw words of a shape for each sample. Drawing twice from one stream gives the same numbers: fold first.

        Samples lie next to each other in memory: numpy's inner loops are as long as the batch.
        """
        words = _mix(_counters(shape)[..., None] + self.keys)
        return words.transpose(len(shape), *range(len(shape)))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Float64[np.ndarray, "B *S"]:
        """Draw numbers in [low, high)."""
        unit = (self.words(*shape) >> _BELOW_53_BITS) * 2.0**-53
        return unit if (low, high) == (0.0, 1.0) else low + (high - low) * unit

    def integers(self, bound: Integer[np.ndarray, " B"] | int) -> Int64[np.ndarray, " B"]:
        """Draw integers in [0, bound), where a bound is below 2**53."""
        return np.minimum((self.uniform() * bound).astype(np.int64), np.asarray(bound, dtype=np.int64) - 1)

    def chance(self, probability: float) -> Bool[np.ndarray, " B"]:
        """Draw truth values, true with the given probability."""
        return self.uniform() < probability

    def normal_voxels(self, shape: Sequence[int], device: torch.device) -> Float32[torch.Tensor, "B *S"]:
        """Draw standard normal numbers of a shape for each sample on a device, one generator per sample.

        CPU and CUDA generators differ, so voxel noise is reproducible on one kind of device, not across kinds.
        """
        out = torch.empty((len(self), *shape), device=device)
        for row, key in zip(out, self.keys, strict=True):
            row.normal_(generator=torch.Generator(device).manual_seed(int(key >> np.uint64(1))))
        return out
