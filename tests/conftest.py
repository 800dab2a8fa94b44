"""What every test has."""

import os

# This process, and those it starts, share two cores with each other; see
# hospital_node/trainer/environment.py for what spinning threads cost there.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
