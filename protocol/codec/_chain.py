"""The adapter sent down as a change of the last one, to sites that hold that one bit for bit.

The aggregator keeps what an up-to-date site holds after decoding, `held`. Each round it encodes the
change from there to the new adapter, and both ends go on from `held + decoded`. A site that missed
a round, or lost its copy, is sent `held` itself in a lossless codec, and is up to date again.

    chain = DeltaChain.start(adapter)                        # at the aggregator, in its checkpoint
    link = chain.advance(adapter, manifest, "int4")          # each round
    send(site, link.payload, link.data, base=link.base)      # where the site last held link.base
    send(site, *link.whole(manifest))                        # everywhere else
    chain = link.after

    held = follow(held, base, decode_payload(...))           # at the site, kind "delta"

What the codec loses is kept and added to the next change (error feedback), so `held` follows the
adapter instead of drifting from it.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import ProtocolError
from ..manifest import AdapterManifest
from ..messages import Payload
from ._base import Vector
from ._payload import encode_payload, vector_digest


@dataclass(frozen=True)
class DeltaChain:
    """`held` (float32 [n]) is what up-to-date sites hold, `lost` what they should hold besides."""

    held: Vector
    lost: Vector

    @classmethod
    def start(cls, adapter: Vector) -> "DeltaChain":
        """A chain that begins with `adapter`, sent whole and lossless."""
        return cls(adapter, np.zeros_like(adapter))

    def advance(
        self, adapter: Vector, manifest: AdapterManifest, codec: str, *, feedback: bool = True
    ) -> "Link":
        """The step from `held` to `adapter` (float32 [n]).

        The aggregator that made `adapter` had `held` as its reference, because that is what the
        sites trained from. `feedback` off forgets what was lost before: with FlexLoRA the factors
        of one round are not those of the last, so their differences do not add up.

        Raises:
            SettingsError: unknown codec.
            ProtocolError: `adapter` does not fit the manifest or is not finite.
        """
        if adapter.shape != self.held.shape:
            raise ProtocolError(f"an adapter of {adapter.shape} cannot follow {self.held.shape}")
        change = adapter - self.held
        if feedback:
            change += self.lost
        payload, data, decoded = encode_payload(codec, change, manifest, "delta")
        after = DeltaChain(self.held + decoded, change - decoded)
        return Link(vector_digest(self.held), payload, data, after)


@dataclass(frozen=True)
class Link:
    """One round's step: `payload` and `data` lead a site that holds `base` to `after.held`."""

    base: str  # SHA-256 of the float32 vector the change is to be added to
    payload: Payload
    data: bytes
    after: DeltaChain

    def whole(self, manifest: AdapterManifest, codec: str = "fp32+zstd") -> tuple[Payload, bytes]:
        """The same adapter for a site that does not hold `base`; `codec` must be lossless.

        Raises:
            ProtocolError: `codec` is not lossless, so this site would hold something else than
                the others.
        """
        payload, data, decoded = encode_payload(codec, self.after.held, manifest, "adapter")
        if decoded.tobytes() != self.after.held.tobytes():
            raise ProtocolError(f"codec {codec!r} loses something: a whole adapter must be exact")
        return payload, data


def follow(held: Vector | None, base: str, change: Vector) -> Vector:
    """At the site: the new adapter (float32 [n]) from the one it holds and the decoded change.

    Raises:
        ProtocolError: the site does not hold the adapter that the change is of; it has to ask for
            the whole.
    """
    if held is None or held.shape != change.shape or vector_digest(held) != base:
        raise ProtocolError("the change is of an adapter that this site does not hold")
    return held + change
