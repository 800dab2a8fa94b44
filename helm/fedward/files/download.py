"""Fetches a base model from the hub: `python download.py ID REVISION FOLDER SHA256`.

Weights as safetensors only; what a pickle could hide is not fetched. A folder is complete once its
weights have the hash SHA256; then it is left alone, so a restart costs nothing.
"""

import os
import sys
from pathlib import Path

PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja"]
TOKEN = Path("/secrets/hub/token")


def main() -> int:
    """Fetch, check, and mark the folder as complete."""
    model, revision, folder, wanted = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    mark = folder / ".complete"
    label = f"{model}@{revision} ({wanted})"
    if mark.exists() and mark.read_text() == label:
        print(f"{label} is here already")
        return 0
    # The image forbids the hub; this Job is the one place that may use it.
    os.environ.update(
        HF_HUB_OFFLINE="0", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1", HF_HOME="/tmp/hub"
    )
    from huggingface_hub import snapshot_download

    token = TOKEN.read_text().strip() if TOKEN.exists() else None
    snapshot_download(
        model, revision=revision, local_dir=folder, allow_patterns=PATTERNS, token=token
    )
    from hospital_node.trainer.base_files import base_hash

    found = base_hash(folder, Path("/tmp"), keep=False)
    if found != wanted:
        named = f"{model}@{revision}"
        print(f"hospital.model.sha256 is {wanted}, but {named} has {found}", file=sys.stderr)
        return 1
    mark.write_text(label)
    print(f"{label} is complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
