"""From a reason to what became of the site in the round."""

from protocol.states import Reason, SiteOutcome


def outcome_of(reason: Reason) -> SiteOutcome:
    """The outcome of a request that got no acceptable answer, for a reason the exchange gives."""
    if reason is Reason.TOO_LATE:
        return SiteOutcome.LATE
    if reason is Reason.NODE_UNAVAILABLE:
        return SiteOutcome.LOST
    if reason in {Reason.MALFORMED, Reason.REVOKED}:
        return SiteOutcome.REFUSED
    return SiteOutcome.FAILED
