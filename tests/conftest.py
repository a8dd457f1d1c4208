import os
import signal
import sys

import torch
from hypothesis import settings

# What reads notebooks imports, where it is installed, a grammar of addresses, which takes three seconds to build.
sys.modules["rfc3987_syntax"] = None

# Examples are the same every time, and none fails for a busy machine.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too: they share the cores

# A shell's background jobs ignore Ctrl-C, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The longest tests first, so that at the end no process waits for another."""
    items.sort(key=lambda item: item.path.name not in ("test_notebooks.py", "test_workers.py"))
