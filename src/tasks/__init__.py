"""The tasks, one file each: sequences and targets, what the model must predict, loss, accuracy, final metrics, and
the words for their figures. `find_task` also takes a class of one's own, FILE.py:NAME."""

import difflib

from src.errors import ConfigError, require
from src.extensions import is_external, load, short_name
from src.tasks.backcopy import Backcopy
from src.tasks.base import USUAL, HeadScore, Solved, Task
from src.tasks.classification import Classification
from src.tasks.induction import Induction
from src.tasks.trigger import Trigger

__all__ = [
    "TASKS", "USUAL", "Backcopy", "Classification", "HeadScore", "Induction", "Solved", "Task", "Trigger", "find_task",
]  # fmt: skip

TASKS: dict[str, type[Task]] = {
    "induction": Induction,
    "classification": Classification,
    "trigger": Trigger,
    "backcopy": Backcopy,
}
NEEDED = ("positional_type", "seq_length", "num_train")  # of a task's defaults


def find_task(name: str) -> type[Task]:
    """The task class of this name, or the user's own; ConfigError for a name that is none."""
    if name in TASKS:
        return TASKS[name]
    if not is_external(name):
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"task={name} is not allowed; choose one of {', '.join(TASKS)}, or FILE.py:NAME{hint}")
    task = load(name)
    require(
        isinstance(task, type) and issubclass(task, Task),
        f"task={name} is no class of a task; let {short_name(name)} inherit from src.tasks.Task",
    )
    undefined = ", ".join(sorted(task.__abstractmethods__))
    require(not undefined, f"task={name} does not define {undefined}; write what src/tasks/base.py says of each")
    missing = [field for field in NEEDED if field not in task.defaults]
    require(not missing, f"task={name} lacks {', '.join(missing)} in its `defaults`; give each a value")
    return task
