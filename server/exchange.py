"""Sending requests to hospitals and waiting for their answers, never for ever.

Flower's own `send_and_receive` looks every 3 s, knows one timeout, and waits out all of it for a
node whose restart lost the message. This loop looks ten times a second while it is young, sends
again when a node came back, asks again after a fault that passes, and hands each answer on as it
comes, so that no more than one is held.

    required letters   the exchange ends when each is answered, lost or late
    optional letters   answered when they are, in this gather() or a later one
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import httpx

from protocol.flower import ERROR_PREFIX
from protocol.flower_records import MESSAGE_TYPE
from protocol.states import Reason

from .directory import Directory, OnlineNode

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = (0.1, 2.0)  # between looks: a hundredth of the time waited, within these
NODES_SECONDS: Final = 2.0
REJOIN_SECONDS: Final = 45.0  # a killed node may come back after Flower's 60 s, and is lost at ~55
RETRY_SECONDS: Final = (1.0, 3.0, 10.0, 30.0)  # after faults that pass: a trainer loads its base
IDLE_SECONDS: Final = 10.0  # doubled with each sending; a node that is free asks every 3 s
IDLE_SENDINGS: Final = 5
DISCARDED: Final = 1000  # replies that nobody waits for any more and that are still fetched

_PASSING: Final = frozenset(
    {
        Reason.CLIENT_APP_DIED,
        Reason.FLOWER_ERROR,
        Reason.INTERRUPTED,
        Reason.LINK_ERROR,
        Reason.TRAINER_UNREACHABLE,
    }
)
_PREFIXED: Final = re.compile(re.escape(ERROR_PREFIX) + r"([a-z_]+)")


class Grid(Protocol):
    """What we use of Flower's Grid."""

    def push_messages(self, messages: Iterable["Message"]) -> Iterable[str]:
        """Send; returns message ids, empty where one was not taken."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable["Message"]:
        """The replies to these messages that have come; each is given once."""

    def get_nodes(self) -> Iterable[Any]:
        """The nodes that are online."""


@dataclass(frozen=True)
class Letter:
    """One request to one hospital, ready to be sent any number of times."""

    site: str
    request_id: str
    records: "RecordDict"
    size: int  # payload bytes of one sending
    optional: bool = False


@dataclass(frozen=True)
class Answer:
    """What came of a letter: records, or the reason why there are none."""

    letter: Letter
    records: "RecordDict | None"
    reason: Reason | None
    seconds: float
    resent: int


@dataclass
class _Pending:
    letter: Letter
    deadline: float
    posted: float
    node: OnlineNode | None = None
    message_ids: set[str] = field(default_factory=set)
    latest: str = ""  # of message_ids, the one sent last
    sent: int = 0
    sent_at: float = 0.0  # unix seconds of the latest sending
    retries: int = 0
    retry_at: float | None = None
    lost_at: float | None = None


class Exchange:
    """Letters under way to the study's hospitals."""

    def __init__(
        self,
        grid: Grid,
        directory: Directory,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check_stop: Callable[[], None] = lambda: None,
        epoch: Callable[[], object] = lambda: None,
        pulse: Callable[[], Mapping[str, float]] = dict,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`check_stop` is called at every look and raises to end the exchange; `epoch` changes
        when the SuperLink has started anew; `pulse` says when each site last asked for work."""
        self._grid, self._directory = grid, directory
        self._clock, self._sleep, self._check_stop = clock, sleep, check_stop
        self._epoch_of_superlink, self._epoch = epoch, epoch()
        self._pulse, self._wall_clock = pulse, wall_clock
        self._pending: dict[str, _Pending] = {}
        self._discard: dict[str, None] = {}
        self._apart = False
        self._looked_at_nodes = float("-inf")

    def gather(
        self,
        letters: Sequence[Letter],
        seconds: float,
        *,
        enough: Callable[[], bool] | None = None,
    ) -> Iterator[Answer]:
        """Send `letters`; yield each answer as it comes, and in the end those that are missing.

        Answers to optional letters of earlier calls are among them. Where `enough` says so, nobody
        waits for the required letters that are left: they are too late.
        """
        started = self._clock()
        online = self._directory.online()
        self._post(letters, started, seconds, online)
        self._looked_at_nodes = self._clock()
        while True:
            self._check_stop()
            yield from self._look()
            yield from self._expire()
            if enough is not None and enough():
                yield from self._abandon()
            if not any(not pending.letter.optional for pending in self._pending.values()):
                return
            waited = self._clock() - started
            self._sleep(min(LOOK_SECONDS[1], max(LOOK_SECONDS[0], waited / 100)))

    def again(self, answer: Answer, seconds: float) -> bool:
        """Ask once more in place of an answer that was not acceptable; False: it was asked before.

        A node that has seen another's message id can answer in its name and so displace the true
        answer, which the signature shows; the true one is then fetched this way.
        """
        if answer.resent or answer.letter.request_id in self._pending:
            return False
        now = self._clock()
        pending = _Pending(answer.letter, now + seconds, now - answer.seconds, sent=1)
        self._pending[answer.letter.request_id] = pending
        self._send([pending], self._directory.online())
        return True

    def also(self, letter: Letter, seconds: float) -> None:
        """Send one more letter, whose answer comes out of the gather() that is under way."""
        self._post([letter], self._clock(), seconds, self._directory.online())

    def _abandon(self) -> Iterator[Answer]:
        for pending in list(self._pending.values()):
            if not pending.letter.optional:
                yield self._settle(pending, None, Reason.TOO_LATE)

    def _post(
        self,
        letters: Sequence[Letter],
        now: float,
        seconds: float,
        online: dict[str, OnlineNode],
    ) -> None:
        fresh = [_Pending(letter, now + seconds, now) for letter in letters]
        self._pending.update({pending.letter.request_id: pending for pending in fresh})
        self._send(fresh, online)

    def _send(self, batch: Sequence[_Pending], online: dict[str, OnlineNode]) -> None:
        """Push a batch in one call, so that what the letters share is pushed once."""
        from flwr.app import Message

        now = self._clock()
        reachable = []
        for pending in batch:
            pending.retry_at = None
            pending.node = online.get(pending.letter.site)
            if pending.node is None:
                pending.lost_at = pending.lost_at or now
            else:
                pending.lost_at = None
                reachable.append(pending)
        if not reachable:
            return
        messages = [
            Message(
                pending.letter.records,
                pending.node.node_id,
                MESSAGE_TYPE,
                ttl=max(60.0, pending.deadline - now + 60.0),
            )
            for pending in reachable
            if pending.node is not None
        ]
        for pending, message_id in zip(reachable, self._grid.push_messages(messages), strict=True):
            if message_id:
                pending.sent += 1
                pending.message_ids.add(message_id)
                pending.latest = message_id
                pending.sent_at = self._wall_clock()
            else:
                pending.lost_at = now

    def _look(self) -> Iterator[Answer]:
        if self._clock() - self._looked_at_nodes >= NODES_SECONDS:
            self._looked_at_nodes = self._clock()
            yield from self._shut_out()
            self._send_again(self._directory.online())
        owners = {
            message_id: pending
            for pending in self._pending.values()
            for message_id in pending.message_ids
        }
        for pending, messages in self._pull(owners):
            if messages is None:
                assert pending is not None
                yield self._settle(pending, None, Reason.MALFORMED)
                continue
            for message in messages:
                yield from self._took(owners, message)

    def _took(self, owners: dict[str, _Pending], message: "Message") -> Iterator[Answer]:
        # Errors that the SuperLink makes carry its own node id, so only this one names the site.
        message_id = message.metadata.reply_to_message_id
        self._discard.pop(message_id, None)
        pending = owners.get(message_id)
        if pending is None or pending.letter.request_id not in self._pending:
            log.info("a reply came that is late or was had before; it is dropped")
            return
        pending.message_ids.discard(message_id)
        if self._directory.revoked({pending.letter.site}):
            yield self._settle(pending, None, Reason.REVOKED)
            return
        if not message.has_error():
            yield self._settle(pending, message.content, None)
            return
        reason = error_reason(message.error.code, message.error.reason or "")
        now = self._clock()
        if message_id != pending.latest:
            return  # it was sent again since, and that sending may still be answered
        if reason is Reason.NODE_UNAVAILABLE:
            pending.lost_at = now
        elif reason in _PASSING and pending.retries < len(RETRY_SECONDS):
            pending.retry_at = now + RETRY_SECONDS[pending.retries]
            pending.retries += 1
            log.info("%s: %s; asking again", pending.letter.site, reason)
        else:
            yield self._settle(pending, None, reason)

    def _pull(
        self, owners: dict[str, _Pending]
    ) -> Iterator[tuple[_Pending | None, "list[Message] | None"]]:
        """Fetch what has come. None in place of messages: what came cannot be read.

        One call for all is the cheap way. But Flower's decoder raises on bytes that a hostile
        hospital can make, and then the answers of all the others in that call are gone too. So
        after the first time each hospital is asked about apart, and all are asked again.
        """
        if not self._apart:
            if not owners and not self._discard:
                return
            try:
                yield None, list(self._grid.pull_messages([*owners, *self._discard]))
            except httpx.HTTPError as error:
                log.warning("the SuperLink does not give replies: %s", error)
            except Exception as error:  # noqa: BLE001 - whatever hostile bytes make a decoder raise
                log.warning("a reply cannot be read (%s); looking at each apart", type(error))
                self._apart = True
                self._send(list(self._pending.values()), self._directory.online())
            return
        for pending in list(self._pending.values()):
            if not pending.message_ids:
                continue
            try:
                yield pending, list(self._grid.pull_messages(list(pending.message_ids)))
            except httpx.HTTPError as error:
                log.warning("the SuperLink does not give replies: %s", error)
            except Exception:  # noqa: BLE001 - as above; now we know whose it is
                yield pending, None

    def _send_again(self, online: dict[str, OnlineNode]) -> None:
        """Send again where the message is gone, or was answered by a fault that passes."""
        now = self._clock()
        batch = []
        # A SuperLink that was killed while it handed out a message has it down as delivered.
        epoch, self._epoch = self._epoch, self._epoch_of_superlink()
        anew = epoch != self._epoch
        pulse = self._pulse()
        for pending in self._pending.values():
            node = online.get(pending.letter.site)
            due = pending.retry_at is not None and now >= pending.retry_at
            back = node is not None and pending.lost_at is not None
            restarted = node is not None and pending.node is not None and node != pending.node
            idle = _is_idle(pending, pulse)
            if node is not None and (due or back or restarted or anew or idle):
                log.info("%s is sent its request again", pending.letter.site)
                batch.append(pending)
        if batch:
            self._send(batch, online)

    def _shut_out(self) -> Iterator[Answer]:
        """End the wait for hospitals that were revoked: the round goes on with the others."""
        gone = self._directory.revoked(pending.letter.site for pending in self._pending.values())
        for pending in list(self._pending.values()):
            if pending.letter.site in gone:
                log.warning("%s was revoked; nobody waits for it", pending.letter.site)
                yield self._settle(pending, None, Reason.REVOKED)

    def _expire(self) -> Iterator[Answer]:
        now = self._clock()
        for pending in list(self._pending.values()):
            if pending.lost_at is not None and now - pending.lost_at >= REJOIN_SECONDS:
                yield self._settle(pending, None, Reason.NODE_UNAVAILABLE)
            elif now >= pending.deadline:
                lost = pending.lost_at is not None
                reason = Reason.NODE_UNAVAILABLE if lost else Reason.TOO_LATE
                yield self._settle(pending, None, reason)

    def _settle(
        self, pending: _Pending, records: "RecordDict | None", reason: Reason | None
    ) -> Answer:
        del self._pending[pending.letter.request_id]
        # What still comes is fetched and dropped, so that it does not fill the SuperLink's disk.
        self._discard.update(dict.fromkeys(pending.message_ids))
        while len(self._discard) > DISCARDED:
            del self._discard[next(iter(self._discard))]
        seconds = self._clock() - pending.posted
        return Answer(pending.letter, records, reason, seconds, max(0, pending.sent - 1))


def _is_idle(pending: _Pending, pulse: Mapping[str, float]) -> bool:
    """Whether a node asks for other work although it has a request and owes the answer."""
    if not pending.message_ids or pending.sent > IDLE_SENDINGS:
        return False
    quiet = IDLE_SECONDS * 2.0 ** (pending.sent - 1)
    return pulse.get(pending.letter.site, 0.0) > pending.sent_at + quiet


def error_reason(code: int, text: str) -> Reason:
    """Our word for a Flower error: one of our own codes if the link put one in, else by number.

    The text itself goes nowhere: an exception's text could quote a patient record.
    """
    found = _PREFIXED.search(text)
    if found and found[1] in set(Reason):
        return Reason(found[1])
    return {
        1: Reason.LINK_ERROR,  # the ClientApp could not be loaded
        2: Reason.LINK_ERROR,  # it raised
        5: Reason.NODE_UNAVAILABLE,
        6: Reason.LINK_ERROR,
        7: Reason.LINK_ERROR,  # it would not take the app
        8: Reason.CLIENT_APP_DIED,
    }.get(code, Reason.FLOWER_ERROR)
