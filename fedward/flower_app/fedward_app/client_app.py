"""What Flower starts at a hospital, whose own executor runs the installed module all the same."""

from hospital_node.link.client_app import app

__all__ = ["app"]
