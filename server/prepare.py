"""Round 0: hospitals join, load the base, and agree on what is trained.

One hospital, the lead, also sends the first adapter. Hospitals agree when base weights and adapter
layout are the same; where they differ the larger group goes on, so that one misconfigured lead
cannot turn everybody else away, and each of the others is told which of the two differs.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.events import SitePrepared
from protocol.manifest import AdapterManifest
from protocol.messages import Description, Evaluation, Request
from protocol.states import Reason, SiteOutcome

from .checkpoint import Checkpoint, Vector
from .context import StudyContext, StudyFailedError
from .exchange import Answer, Letter
from .outcomes import outcome_of
from .replies import Received, RefusedError, open_reply, read_initial

log = logging.getLogger(__name__)

SETTLE_SECONDS = 15.0  # for the others, once enough are online: nodes start within seconds
JOIN_LOOK_SECONDS = 0.5

Agreement = tuple[str, str]  # base weights, adapter layout


@dataclass
class Preparation:
    """What round 0 found: who takes part, on which base, with which adapter."""

    context: StudyContext
    agreed: Agreement | None = None
    manifest: AdapterManifest | None = None
    initial: Vector | None = None
    prepared: dict[str, Description] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)
    base: dict[str, Evaluation] = field(default_factory=dict)
    _asked: dict[str, Request] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _down: Counter[str] = field(default_factory=Counter)  # bytes sent and not yet journalled

    @classmethod
    def resume(cls, context: StudyContext, checkpoint: Checkpoint | None) -> "Preparation":
        """Begin, or go on from a checkpoint: its base and layout are then the agreed ones."""
        preparation = cls(context)
        for event in context.folder.events:
            if isinstance(event, SitePrepared) and event.evaluation is not None:
                preparation.base[event.site] = event.evaluation
        if checkpoint is not None:
            preparation.agreed = (checkpoint.base_sha256, checkpoint.manifest.digest)
            preparation.manifest, preparation.initial = checkpoint.manifest, checkpoint.initial
        return preparation

    def run(self) -> None:
        """Wait for hospitals and prepare them.

        Raises:
            StudyFailedError: too few came, or too few agree.
        """
        sites = wait_for_sites(self.context)
        seconds = self.context.settings.rounds.deadline_seconds
        lead = sites[0] if self.initial is None else None
        answers = self._collect(self.letters(sites, lead=lead), seconds)
        self._agree(answers)
        for site, received in answers.items():
            self._admit(site, received)
        self._require_minimum()
        for site in sorted(self.prepared):
            if self.initial is not None:
                return
            self._fetch_initial(site, answers.get(site), seconds)
        if self.initial is None:
            raise StudyFailedError("no hospital could send the first adapter")

    def letters(
        self, sites: Iterable[str], *, lead: str | None = None, optional: bool = False
    ) -> list[Letter]:
        """Prepare requests; the base is measured where the journal has no figure for it."""
        letters = []
        for site in sites:
            request, letter = self.context.writer.prepare(
                site, evaluate=site not in self.base, want_initial=site == lead
            )
            self._asked[request.request_id] = request
            self.context.past.add(request.request_id)
            letters.append(
                Letter(letter.site, letter.request_id, letter.records, letter.size, optional)
            )
        return letters

    def late_arrival(self, answer: Answer) -> None:
        """Take the answer of a hospital that joined while rounds were under way."""
        received = self._open(answer)
        if received is not None:
            self._admit(answer.letter.site, received)

    def owns(self, answer: Answer) -> bool:
        """Whether an answer is to one of the requests made here."""
        return answer.letter.request_id in self._asked

    def _collect(self, letters: list[Letter], seconds: float) -> dict[str, Received]:
        answers = {}
        for answer in self.context.exchange.gather(letters, seconds):
            received = self._open(answer)
            if received is not None:
                answers[answer.letter.site] = received
        return answers

    def _open(self, answer: Answer) -> Received | None:
        """The answer if it counts; otherwise it is journalled here."""
        site, request = answer.letter.site, self._asked[answer.letter.request_id]
        size = 0
        self._down[site] += answer.letter.size * (1 + answer.resent)
        self._seconds[site] = answer.seconds
        reason = answer.reason
        outcome = outcome_of(reason) if reason else SiteOutcome.REFUSED
        if answer.records is not None:
            try:
                key = self.context.directory.verify_key(site)
                received = open_reply(answer.records, request, key, frozenset(self.context.past))
                if received.reply.reason is None:
                    return received
                size, reason = received.size, received.reply.reason
                outcome = SiteOutcome.FAILED
            except RefusedError as error:
                log.warning("%s: prepare refused: %s", site, error)
                size, reason = error.size, error.reason
        self.context.journal.append(
            SitePrepared,
            site=site,
            outcome=outcome,
            reason=reason,
            bytes_up=size,
            bytes_down=self._down.pop(site, 0),
        )
        return None

    def _agree(self, answers: dict[str, Received]) -> None:
        """Decide on which base and layout the study goes on."""
        if self.agreed is not None:
            return
        wanted = self.context.settings.model.sha256
        votes = Counter(
            _agreement(received)
            for received in answers.values()
            if wanted is None or _agreement(received)[0] == wanted
        )
        if votes:  # ties go to the first by name: most_common keeps the order of insertion
            self.agreed = votes.most_common(1)[0][0]

    def _admit(self, site: str, received: Received) -> None:
        reply, description = received.reply, received.reply.description
        if description is None:
            return
        reason = None
        mine = _agreement(received)
        if self.agreed is None or mine[0] != self.agreed[0]:
            reason = Reason.MODEL_MISMATCH
        elif mine[1] != self.agreed[1] or (
            description.rank is not None and not self._may_be_smaller(description.rank)
        ):
            reason = Reason.WRONG_MANIFEST
        if reply.evaluation is not None:
            self.base[site] = reply.evaluation
        self.context.journal.append(
            SitePrepared,
            site=site,
            outcome=SiteOutcome.REFUSED if reason else SiteOutcome.OK,
            reason=reason,
            train_examples=description.train_examples,
            heldout_examples=description.heldout_examples,
            data_fingerprint=description.data_fingerprint,
            bytes_up=received.size,
            codec_up=reply.payload.codec if reply.payload else "",
            bytes_down=self._down.pop(site, 0),
            evaluation=self.base.get(site),
            timing=reply.timing,
            seconds=self._seconds.pop(site, 0.0),
            health=reply.health,
        )
        if reason is not None:
            self.refused.add(site)
            return
        self.prepared[site] = description
        self.manifest = self.manifest or description.manifest

    def _may_be_smaller(self, rank: int) -> bool:
        settings = self.context.settings
        return settings.mixed_ranks and rank < settings.adapter.rank

    def _fetch_initial(self, site: str, received: Received | None, seconds: float) -> None:
        """Take the first adapter from `site`, asking for it if it was not the lead."""
        if received is None or received.reply.payload is None:
            answers = self._collect(self.letters([site], lead=site), seconds)
            received = answers.get(site)
            if received is None:
                return
            self._admit(site, received)
        try:
            if _agreement(received) != self.agreed:
                raise RefusedError(Reason.WRONG_MANIFEST, "another layout than a moment ago")
            self.initial = read_initial(received)
        except RefusedError as error:
            log.warning("%s: its first adapter is refused: %s", site, error)
            self.context.journal.append(
                SitePrepared, site=site, outcome=SiteOutcome.REFUSED, reason=error.reason
            )

    def _require_minimum(self) -> None:
        needed = self.context.settings.rounds.minimum_sites
        if len(self.prepared) < needed:
            others = sorted(set(self.context.directory.sites) - set(self.prepared))
            raise StudyFailedError(
                f"{len(self.prepared)} hospital(s) are ready and rounds.minimum_sites is {needed}; "
                f"not ready: {', '.join(others) or 'none'} (each one's reason is in its events)"
            )


def wait_for_sites(context: StudyContext) -> list[str]:
    """Wait until enough of the study's hospitals are online, and a little for the others.

    Raises:
        StudyFailedError: too few within rounds.join_seconds.
    """
    rounds = context.settings.rounds
    started = context.clock()
    enough_at: float | None = None
    seen = 0
    while True:
        context.check_stop()
        expected, online = context.directory.sites, sorted(context.directory.online())
        now = context.clock()
        if len(online) > seen:
            seen, enough_at = len(online), now if len(online) >= rounds.minimum_sites else None
        if len(online) >= rounds.minimum_sites:
            enough_at = now if enough_at is None else enough_at
            settled = now - enough_at >= min(SETTLE_SECONDS, rounds.join_seconds)
            if len(online) >= len(expected) or settled:
                return online
        elif now - started >= rounds.join_seconds:
            missing = sorted(set(expected) - set(online))
            raise StudyFailedError(
                f"{len(online)} of the {rounds.minimum_sites} hospitals that a round needs were "
                f"online within rounds.join_seconds = {rounds.join_seconds:g}; missing: "
                f"{', '.join(missing)[:200] or 'enrolled hospitals'}"
            )
        context.sleep(JOIN_LOOK_SECONDS)


def _agreement(received: Received) -> Agreement:
    description = received.reply.description
    assert description is not None  # a prepare reply without one does not validate
    return description.base_sha256, description.manifest.digest
