"""The ClientApp: hands one message to the trainer and its answer back. No torch, no data path.

A node runs this installed module whatever app the aggregator sent (`executor`), so what runs at a
hospital is what the hospital installed. Exceptions never travel: a text could quote what it should
not, so the aggregator is told a reason code.
"""

import logging
import os
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from protocol.errors import ProtocolError
from protocol.flower import ERROR_PREFIX
from protocol.flower_records import pack, unpack
from protocol.site import RemoteSettings, TrainerSettings
from protocol.states import Reason

from .trainer_client import TrainerUnreachableError, Where, exchange, trainer_of

SOCKET_VARIABLE = "FEDWARD_TRAINER_SOCKET"
REMOTE_VARIABLE = "FEDWARD_TRAINER_REMOTE"  # in its stead: JSON; paths and an address, no secret

_CLIENT_APP_ERROR = 2  # flwr's ErrorCode.CLIENT_APP_RAISED_EXCEPTION

log = logging.getLogger("fedward.link")
app = ClientApp()


def variables(settings: TrainerSettings) -> dict[str, str]:
    """What a ClientApp finds in its environment to reach the trainer."""
    where = trainer_of(settings)
    if isinstance(where, RemoteSettings):
        return {REMOTE_VARIABLE: where.model_dump_json()}
    return {SOCKET_VARIABLE: str(where)}


def _trainer() -> Where:
    remote = os.environ.get(REMOTE_VARIABLE)
    if remote is not None:
        return RemoteSettings.model_validate_json(remote)
    return Path(os.environ[SOCKET_VARIABLE])


def answer(message: Message) -> Message:
    """Pass `message` to the trainer; a Flower error with a reason code if that cannot be done."""
    try:
        request = unpack(message.content)
        reply = exchange(_trainer(), request)
        return Message(pack(reply), reply_to=message)
    except ProtocolError as error:
        return _refuse(message, Reason.MALFORMED, error)
    except TrainerUnreachableError as error:
        return _refuse(message, Reason.TRAINER_UNREACHABLE, error)
    except Exception as error:  # noqa: BLE001 - whatever it is, its text must not travel
        return _refuse(message, Reason.LINK_ERROR, error)


def _refuse(message: Message, reason: Reason, error: Exception) -> Message:
    log.error("cannot answer the aggregator (%s): %s", reason, error)
    return Message(Error(_CLIENT_APP_ERROR, f"{ERROR_PREFIX}{reason}"), reply_to=message)


@app.train()
def train(message: Message, _context: Context) -> Message:
    """Pass on a request to train."""
    return answer(message)


@app.evaluate()
def evaluate(message: Message, _context: Context) -> Message:
    """Pass on a request to evaluate."""
    return answer(message)


@app.query()
def query(message: Message, _context: Context) -> Message:
    """Pass on a request to prepare."""
    return answer(message)
