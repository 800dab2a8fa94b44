"""Which messages become work: signed by the coordinator, for this site, allowed here, and new.

A request that is sent again (the link was restarted, a message was lost) is answered from memory,
or joins the work that is under way. What is remembered beyond the last replies is in the ledger, so
a restarted trainer still knows which rounds it has answered.
"""

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from protocol.envelope import Envelope, SignatureError, check_payload, unseal
from protocol.errors import ProtocolError
from protocol.messages import Reply, Request, Task
from protocol.site import SiteSettings
from protocol.states import Reason

from .errors import Refusal

log = logging.getLogger("fedward.trainer")

# Replies kept whole, for a link or an aggregator that asks again. One may hold an adapter (320 MiB
# for an 8B model's all-linear rank 32); the newest is kept whatever its size.
_KEPT_REPLIES: Final = 16
_KEPT_BYTES: Final = 1 << 30
_KEPT_IDS: Final = 100_000


@dataclass
class Job:
    """One admitted request and where its answer will be."""

    request: Request
    payload: bytes
    digest: str  # SHA-256 (hex) of the signed header
    received: float = field(default_factory=time.monotonic)
    cancel: threading.Event = field(default_factory=threading.Event)
    done: bool = False  # the reply carries a result, not a reason
    future: "Future[Envelope]" = field(default_factory=Future)


class Inbox:
    """Checks requests and queues the new ones; safe to call from any thread."""

    def __init__(
        self, site: SiteSettings, coordinator: Ed25519PublicKey, history: Iterable[dict[str, Any]]
    ) -> None:
        """`history` are the ledger's entries."""
        self.site = site
        self.queue: SimpleQueue[Job | None] = SimpleQueue()  # None: there will be no more
        self._coordinator = coordinator
        self._lock = threading.Lock()
        self._live: dict[str, Job] = {}
        self._answered: OrderedDict[str, Job] = OrderedDict()
        self._seen: OrderedDict[str, str] = OrderedDict()  # request id: digest
        self._rounds: dict[str, int] = {}  # study id: newest round trained
        for entry in history:
            if entry.get("kind") == "reply" and entry.get("request_digest"):
                self._remember(
                    entry["request_id"],
                    entry["request_digest"],
                    entry["study"],
                    entry["round"] if entry["task"] == Task.TRAIN else 0,
                )

    def admit(self, envelope: Envelope) -> Job:
        """Check a request; returns its job, new or the one that is under way or was answered.

        Raises:
            Refusal: it is not one this site works on.
        """
        digest = hashlib.sha256(envelope.header).hexdigest()
        try:
            request = unseal(envelope, Request, self._coordinator, context="request")
            check_payload(envelope.payload, request.payload)
        except SignatureError as error:
            raise Refusal(Reason.BAD_SIGNATURE, str(error)) from error
        except ProtocolError as error:
            raise Refusal(Reason.MALFORMED, str(error)) from error
        self._check(request)
        with self._lock:
            known = self._known(request, digest)
            if known is not None:
                return known
            last = self._rounds.get(request.study_id, 0)
            if request.task is Task.TRAIN and request.round < last:
                raise Refusal(
                    Reason.WRONG_ROUND,
                    f"round {request.round} of {request.study_id} was asked after round {last}",
                )
            self._supersede(request)
            job = Job(request, envelope.payload, digest)
            self._live[request.request_id] = job
            self._remember(
                request.request_id,
                digest,
                request.study_id,
                request.round if request.task is Task.TRAIN else 0,
            )
            self.queue.put(job)
            return job

    def finished(self, job: Job) -> None:
        """The job's future is set: keep the reply, if the work was done, for who asks again.

        A failure is not kept: whoever asks again may have freed memory or mended a file.
        """
        with self._lock:
            self._live.pop(job.request.request_id, None)
            job.payload = b""
            if not job.done:
                return
            kept = self._answered
            kept[job.request.request_id] = job
            size = sum(other.future.result().size for other in kept.values())
            while len(kept) > 1 and (len(kept) > _KEPT_REPLIES or size > _KEPT_BYTES):
                size -= kept.popitem(last=False)[1].future.result().size

    def cancel_all(self) -> None:
        """Tell all work to stop."""
        self.queue.put(None)
        with self._lock:
            for job in self._live.values():
                job.cancel.set()

    def _check(self, request: Request) -> None:
        """What needs no memory."""
        settings, site = request.settings, self.site
        if request.site != site.name:
            raise Refusal(Reason.WRONG_SITE, f"a request for {request.site!r}, not {site.name!r}")
        if settings.sites and site.name not in settings.sites:
            raise Refusal(Reason.WRONG_SITE, f"{settings.name!r} does not name this site")
        if site.limits.studies and settings.name not in site.limits.studies:
            raise Refusal(
                Reason.SITE_FORBIDS,
                f"study {settings.name!r} is not in this site's limits.studies = "
                f"{list(site.limits.studies)}",
            )
        if not (request.study_id + "-").startswith(settings.name + "-"):
            raise Refusal(
                Reason.WRONG_STUDY,
                f"study id {request.study_id!r} does not belong to {settings.name!r}",
            )
        if request.task is Task.TRAIN and not 1 <= request.round <= settings.rounds.count:
            raise Refusal(Reason.WRONG_ROUND, f"there is no round {request.round} to train")
        if request.task is Task.PREPARE and request.round != 0:
            raise Refusal(Reason.WRONG_ROUND, "a site is prepared in round 0")
        if request.task is Task.TRAIN and request.steps < 1:
            raise Refusal(Reason.MALFORMED, "a train request without steps")
        if request.task in {Task.TRAIN, Task.EVALUATE} and request.payload is None:
            raise Refusal(Reason.MALFORMED, f"a {request.task} request without an adapter")

    def _known(self, request: Request, digest: str) -> Job | None:
        """The job of a request that came before, if its answer is still to be had."""
        seen = self._seen.get(request.request_id)
        if seen is None:
            return None
        if seen != digest:
            raise Refusal(Reason.REPLAYED, "another request came under this request id before")
        return self._live.get(request.request_id) or self._answered.get(request.request_id)

    def _supersede(self, request: Request) -> None:
        """A newer request to train replaces the training of the same study.

        The aggregator asks one site for one round at a time: when it asks for the next, or for
        this one from another adapter, it has given up on the last.
        """
        if request.task is not Task.TRAIN:
            return
        for job in self._live.values():
            if job.request.study_id == request.study_id and job.request.task is Task.TRAIN:
                log.info("round %d is replaced by a newer request", job.request.round)
                job.cancel.set()

    def _remember(self, request_id: str, digest: str, study: str, round_number: int) -> None:
        self._seen[request_id] = digest
        while len(self._seen) > _KEPT_IDS:
            self._seen.popitem(last=False)
        self._rounds[study] = max(self._rounds.get(study, 0), round_number)


def refusal(envelope: Envelope, site: str, reason: Reason) -> Reply:
    """The answer to a request that was not admitted.

    It names what it refuses as far as that could be read; who wrote it is not known, and the names
    and numbers in it are bounded by `Request`.
    """
    try:
        request = Request.model_validate_json(envelope.header)
    except ValidationError:
        return Reply(
            request_id="0" * 32, study_id="unknown", site=site, task=Task.PREPARE, round=0,
            reason=reason,
        )  # fmt: skip
    return Reply(
        request_id=request.request_id,
        study_id=request.study_id,
        site=site,
        task=request.task,
        round=request.round,
        reason=reason,
    )
