"""What Flower starts at the aggregator."""

from server.app import app

__all__ = ["app"]
