import os
import signal

import torch
from hypothesis import HealthCheck, settings

# Whoever runs the tests, in a terminal or not: tables are as wide as in a pipe, and plain.
os.environ["COLUMNS"] = "120"
for name in ("NO_COLOR", "FORCE_COLOR"):
    os.environ.pop(name, None)

# A shell lets jobs in the background ignore Ctrl-C, and what they start with them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests are small: threads cost more than they give, above all where several processes run tests.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

settings.register_profile(
    "ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
