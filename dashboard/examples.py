"""Example bodies for OpenAPI; tests send them, so they are known to be valid."""

from typing import Any, Final

from fastapi.openapi.models import Example

_SETTINGS: Final[dict[str, Any]] = {
    "name": "cardiology",
    "model": {"base": "mistralai/Mistral-7B-v0.3", "quantization": "nf4"},
    "sites": ["alder", "birch", "cedar"],
    "rounds": {"count": 20, "minimum_sites": 2, "deadline_seconds": 3600},
    "training": {"steps": 10, "batch_size": 16, "learning_rate": 0.0002},
}

SUBMISSION: Final[dict[str, Example]] = {
    "study": {"summary": "Twenty rounds at three hospitals", "value": {"settings": _SETTINGS}}
}

EVENTS: Final[dict[str, Example]] = {
    "beginning": {
        "summary": "A study is queued and starts",
        "value": [
            {
                "kind": "study_queued",
                "study_id": "cardiology-1a2b3c",
                "seq": 1,
                "at": 1700000000.0,
                "settings": _SETTINGS,
            },
            {
                "kind": "study_started",
                "study_id": "cardiology-1a2b3c",
                "seq": 2,
                "at": 1700000001.5,
                "flower_run_id": "8125",
            },
        ],
    }
}

NODES: Final[dict[str, Example]] = {
    "online": {
        "summary": "A node that works",
        "value": [
            {
                "site": "alder",
                "node_id": "4112",
                "status": "online",
                "last_heartbeat_at": 1700000002.0,
                "last_pull_at": 1700000001.0,
                "wire_bytes_in": 120000,
                "wire_bytes_out": 130000,
                "wire_epoch": 1699999000.0,
            }
        ],
    }
}

LOG_IN: Final[dict[str, Example]] = {
    "token": {"summary": "The text in operator.token", "value": {"token": "x" * 43}}
}
