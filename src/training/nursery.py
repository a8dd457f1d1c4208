"""What the server that forks workers imports, once for all of them."""

import contextlib
import io
import os
import signal

from src.runs.provenance import git_commit
from src.training import workers  # noqa: F401

with contextlib.redirect_stderr(io.StringIO()):  # the parent says if it is unknown
    git_commit()  # of the code that is in memory now, whatever is edited while workers train

# A signal for the whole process group is the parent's to answer: it stops the workers in order.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
