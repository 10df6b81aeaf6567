"""Quality of a quantized deployment, paired with its unquantized baseline.

::

    task ─► Subject: asks the server, scores given text ─► items ─► scores, paired with the baseline's items
    open_task                                               kept      observation_rows
"""

from qplan.measure.quality.evaluate import evaluate, observation_rows
from qplan.measure.quality.results import Item, Score, TaskResult, from_json, to_json
from qplan.measure.quality.tasks import TASKS, Task, open_task

__all__ = [
    "TASKS",
    "Item",
    "Score",
    "Task",
    "TaskResult",
    "evaluate",
    "from_json",
    "observation_rows",
    "open_task",
    "to_json",
]
