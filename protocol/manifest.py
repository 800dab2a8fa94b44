"""The adapter's layout: which tensors, in which order, of which shape.

An adapter travels as one flat float32 vector, because Flower's cost is per array object: the same
8 MB took 24 s a round as 192 arrays and 6.5 s as one (two nodes, loopback). The manifest says where
each tensor lies in that vector.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TensorSpec(BaseModel):
    """One tensor of the adapter: PEFT's own key and its shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=512)
    shape: tuple[int, ...] = Field(max_length=8)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class AdapterManifest(BaseModel):
    """The tensors of an adapter, in the order in which they are laid end to end.

    The order is by name, so two sites that build the same adapter build the same manifest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensors: tuple[TensorSpec, ...] = Field(min_length=1, max_length=100_000)

    @model_validator(mode="after")
    def _sorted_and_positive(self) -> "AdapterManifest":
        names = [tensor.name for tensor in self.tensors]
        if any(a >= b for a, b in pairwise(names)):
            raise ValueError("tensor names must be unique and in ascending order")
        if any(size < 1 for tensor in self.tensors for size in tensor.shape):
            raise ValueError("every dimension of every tensor must be at least 1")
        return self

    @cached_property
    def numel(self) -> int:
        """Number of elements of the flat vector."""
        return sum(tensor.numel for tensor in self.tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the layout; two adapters may be averaged only if theirs are equal."""
        layout = [[tensor.name, list(tensor.shape)] for tensor in self.tensors]
        return hashlib.sha256(json.dumps(layout, separators=(",", ":")).encode()).hexdigest()

    def slices(self) -> Iterator[tuple[TensorSpec, slice]]:
        """Yield each tensor with its place in the flat vector."""
        start = 0
        for tensor in self.tensors:
            yield tensor, slice(start, start + tensor.numel)
            start += tensor.numel
