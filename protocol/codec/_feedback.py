"""What an encoding lost is not lost: it is added to the next update.

Error feedback (Seide et al., Interspeech 2014; Karimireddy et al., arXiv 1901.09847, algorithm 2):

    p = delta + residual;   send C(p);   residual = p - C(p)
"""

from dataclasses import dataclass

import numpy as np

from ..errors import ProtocolError
from ._base import Vector


@dataclass(frozen=True)
class ErrorFeedback:
    """The sender's residual (float32 [n]); it never leaves the site.

        wanted = feedback.add_to(delta)
        payload, data, sent = encode_payload(codec, wanted, manifest, "delta")
        feedback = feedback.after(wanted, sent)     # once the update has gone out

    An update that the aggregator did not use is not lost either: keep the value from before
    `after` and add the whole `wanted` the next time. A site that was not asked for many rounds
    begins with a new residual, because the old one is about an adapter that is long gone.
    """

    residual: Vector

    @classmethod
    def new(cls, numel: int) -> "ErrorFeedback":
        """Nothing lost yet."""
        return cls(np.zeros(numel, np.float32))

    def add_to(self, delta: Vector) -> Vector:
        """What is to be encoded: float32 [n].

        Raises:
            ProtocolError: `delta` has another length than the residual.
        """
        if delta.shape != self.residual.shape:
            raise ProtocolError(
                f"an update of {delta.shape} and a residual of {self.residual.shape} do not fit"
            )
        return delta + self.residual

    def after(self, wanted: Vector, sent: Vector) -> "ErrorFeedback":
        """The residual once `sent` went out in place of `wanted`."""
        return ErrorFeedback(wanted - sent)
