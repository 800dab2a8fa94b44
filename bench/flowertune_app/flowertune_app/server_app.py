"""FedAvg as Flower ships it, with the wall clock of each round written down."""

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """FedAvg that notes when a round began and how long its slowest client trained."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.rounds = []

    def configure_train(self, server_round, arrays, config, grid):
        """Note the start of a round."""
        self.began = time.monotonic()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        """Note its end."""
        replies = list(replies)
        training = [r.content["metrics"]["train-seconds"] for r in replies if r.has_content()]
        out = super().aggregate_train(server_round, replies)
        self.rounds.append(
            {
                "wall": time.monotonic() - self.began,
                "training": max(training, default=0.0),
                "sites": float(len(training)),
            }
        )
        return out


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and write them to `results`."""
    cfg = context.run_config
    strategy = Timed(
        fraction_evaluate=0.0,
        min_train_nodes=int(cfg["min-nodes"]),
        min_available_nodes=int(cfg["min-nodes"]),
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(),
        num_rounds=int(cfg["num-server-rounds"]),
        timeout=600,
    )
    Path(str(cfg["results"])).write_text(json.dumps(strategy.rounds))
