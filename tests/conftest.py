import gc
import os
import signal
import sys

from hypothesis import settings

# What reads notebooks imports, where it is installed, a grammar of addresses, which takes three seconds to build.
sys.modules["rfc3987_syntax"] = None

# Examples are the same every time, and none fails for a busy machine.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
# One thread for each process, those that tests start too: they share the cores. Torch, which takes this when it is
# imported, is not imported here: the process that hands out the tests needs none, and all others wait for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore Ctrl-C, and so would all that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """The longest tests first, so that at the end no process waits for another."""
    items.sort(key=lambda item: item.path.name not in ("test_notebooks.py", "test_workers.py"))


def pytest_collection_finish():
    """Whoever collects garbage from here on need not look through what has been imported."""
    gc.freeze()
