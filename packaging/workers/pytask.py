"""An example of a worker: it runs each payload as Python, in this one process, and returns what that prints.

Whoever may call worker.run does with it what the worker's user can do: give it a user that can do little.
"""

import contextlib
import io

from minion_worker import Worker


def run(task):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(task.text, task.id, "exec"), {"__name__": "__task__", "task": task})
    return output.getvalue()


if __name__ == "__main__":
    Worker().serve(run)
