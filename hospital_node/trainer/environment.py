"""The libraries' switches: no telemetry, no download, no code from the hub, no chatter, no spin."""

import logging
import os
import warnings


def quiet_libraries(*, allow_hub: bool) -> None:
    """Set them; before torch, transformers, peft or bitsandbytes is imported.

    Without `allow_hub` the Hugging Face libraries may not open a connection at all.
    """
    os.environ.update(
        HF_HUB_DISABLE_TELEMETRY="1",
        DO_NOT_TRACK="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_SYMLINKS_WARNING="1",
        USE_HUB_KERNELS="0",  # transformers would fetch compiled kernels from the hub
        TRANSFORMERS_VERBOSITY="error",
    )
    # OpenMP's threads wait for each other by spinning. Where cores are shared, they spin for one
    # that is not running: three trainers of two threads on two busy cores took 45 s for what takes
    # 0.4 s when they sleep instead.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not allow_hub:
        os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    # bitsandbytes warns that it found no `kernels` package, which is what we want, and says at
    # every int8 product that it casts to float16.
    for name in ("bitsandbytes", "kernels", "peft"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(bitsandbytes|peft|transformers)\b")
    warnings.filterwarnings("ignore", message="MatMul8bitLt")
