"""One helper process of a trainer (see `crew`); nobody starts it by hand."""

import logging
import os
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from protocol.errors import FedwardError

from .environment import quiet_libraries

if TYPE_CHECKING:
    from .crew import Job
    from .model import Shelf
    from .team import Team


def main() -> None:
    """Serve the trainer at the other end of the socket that is named on the command line."""
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(levelname)s helper %(process)d: %(message)s"
    )
    os.umask(0o077)
    pipe = Connection(int(sys.argv[1]))
    try:
        _serve(pipe)
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        return  # the trainer ended, or ended this


def _serve(pipe: Connection) -> None:
    from hospital_node.outbound import reason_of

    from .crew import Begin, Job, Said

    begin: Begin = pipe.recv()
    quiet_libraries(allow_hub=begin.site.model.allow_hub)
    import torch

    from .model import Shelf
    from .team import Team

    if begin.site.trainer.threads:
        torch.set_num_threads(begin.site.trainer.threads)
    pipe.send(Said())
    team = Team(begin.meeting, begin.rank, begin.size)
    shelf = Shelf(begin.site, index=begin.rank)
    while True:
        job: Job = pipe.recv()
        try:
            _do(job, shelf, team)
        except Exception as error:  # noqa: BLE001 - said to the trainer, which ends this process
            sentence = str(error) if isinstance(error, FedwardError) else type(error).__name__
            pipe.send(Said(reason_of(error), f"a helper process: {sentence}"))
            return
        if job.examples is not None:
            pipe.send(Said())


def _do(job: "Job", shelf: "Shelf", team: "Team") -> None:
    import numpy as np

    from .training import train

    resident = shelf.get(job.model)
    if job.examples is None:
        return
    assert job.adapter is not None
    assert job.vector is not None
    assert job.plan is not None
    adapter = resident.use(job.adapter)
    adapter.load(job.vector)
    rows = np.arange(len(job.examples), dtype=np.int64)
    train(resident, adapter, job.examples, rows, job.plan, lambda *_: None, team)


if __name__ == "__main__":
    main()
