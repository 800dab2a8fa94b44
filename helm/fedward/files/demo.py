"""Writes a demo hospital's data and the embedded base model: `python demo.py SITE POSITION`.

The same bytes every time. Each hospital gets its own rows only; the held-out rows are everybody's.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from fedward.demo import MODEL
from fedward.embedded import DEMO
from fedward.embedded.corpus import SPECIALTIES, write_hospital_data

TARGET = Path("/demo")


def main() -> None:
    """Write /demo/data and /demo/model."""
    site, position = sys.argv[1], int(sys.argv[2])
    count = len(SPECIALTIES)
    names = [f"hospital-{number}" for number in range(count)]
    own = names[position % count]
    (TARGET / "data").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        data = write_hospital_data(
            Path(folder),
            names,
            rows_per_hospital=DEMO.rows_per_hospital,
            own_share=DEMO.own_share,
            held_out_rows=DEMO.held_out_rows,
        )
        shutil.copyfile(data.train[own], TARGET / "data" / "train.jsonl")
        shutil.copyfile(data.held_out, TARGET / "data" / "heldout.jsonl")
    shutil.copytree(MODEL, TARGET / "model", dirs_exist_ok=True, copy_function=shutil.copyfile)
    print(f"{site}: {DEMO.rows_per_hospital} rows of {SPECIALTIES[position % count]}")


if __name__ == "__main__":
    main()
