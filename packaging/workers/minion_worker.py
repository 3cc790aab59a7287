"""A worker of a minion, in Python: fetch a task, return what came of it.

This one file is all there is: put it beside your program. It needs Python 3.8 or newer and nothing else.

    from minion_worker import Worker

    def double(task):
        return str(2 * int(task.text))

    Worker().serve(double)

What is returned is the caller's result: text, numbers, lists, dictionaries, None, or bytes, which arrive byte for byte. An exception is the
task's failure: its message, and its class as the type. A task that is to stop ends with TaskCancelled, raised in the main thread wherever the
task is at that moment; one that does not let itself be stopped so is killed, with its process.
"""

import base64
import json
import os
import signal
import socket

__all__ = ["MinionError", "Task", "TaskCancelled", "Worker"]


class MinionError(Exception):
    """The worker's daemon is gone, or says no."""


class TaskCancelled(BaseException):
    """The task is to stop. No Exception, so that `except Exception` does not keep it."""


class Task:
    """One task: its `id`, and its `payload` as bytes."""

    def __init__(self, worker, task_id, payload):
        self.id = task_id
        self.payload = payload
        self._worker = worker

    @property
    def text(self):
        """The payload as text."""
        return self.payload.decode("utf-8")

    def progress(self, fraction, message=""):
        """Says how far the task is, from 0 to 1. It never fails for what is said."""
        self._worker.task_progress(self.id, fraction, message)


class Worker:
    """One instance of a worker, connected to its daemon. Use it from the main thread."""

    def __init__(self, path=None):
        path = path or os.environ.get("MINION_WORKER_SOCKET")
        if not path:
            raise MinionError("MINION_WORKER_SOCKET is not set: a minion starts this program, as a file in its workers.d says")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._buffer = b""
        self._unread = []
        self._last_id = 0
        self._outgoing = b""
        self._current = None
        self._is_sending = False
        # Sent together with the line that asks for the end of a task; nobody dies of it who does not know it.
        signal.signal(signal.SIGURG, self._on_urgent)

    def serve(self, handle):
        """Hands each task to `handle`, for ever, and returns what that returns."""
        while True:
            task = self._fetch()
            try:
                try:
                    self._current = task.id
                    # A wish that came together with the task.
                    self._look_for_wishes()
                    result = handle(task)
                finally:
                    self._current = None
            except TaskCancelled:
                said = _error("cancelled", "cancelled")
            except Exception as error:  # pylint: disable=broad-except
                said = _error(str(error) or type(error).__name__, type(error).__name__)
            else:
                said = {"result": _coded(result)}
            # It goes out together with the wish for the next task.
            self._outgoing += _return_line(task.id, said)

    def task_fetch(self):
        """Waits for a task, as long as it takes. From then on, also from within this call, TaskCancelled may be raised, until it is returned."""
        task = self._fetch()
        self._current = task.id
        self._look_for_wishes()
        return task

    def task_return(self, task_id, result):
        """Returns what came of a task."""
        self._current = None
        self._send(_return_line(task_id, {"result": _coded(result)}))

    def task_fail(self, task_id, message, kind="task"):
        """Says that a task could not be done."""
        self._current = None
        self._send(_return_line(task_id, _error(message, kind)))

    def task_progress(self, task_id, fraction, message=""):
        """Says how far a task is. No answer is waited for."""
        try:
            params = {"task_id": task_id, "fraction": float(fraction), "message": str(message)}
            line = _line({"jsonrpc": "2.0", "method": "task.progress", "params": params})
        except (OverflowError, RecursionError, TypeError, ValueError):
            return
        self._send(line)

    def _fetch(self):
        result = self._wait(self._say("task.fetch", {}))
        payload = result["payload"]
        data = payload["text"].encode("utf-8") if "text" in payload else base64.b64decode(payload["base64"])
        return Task(self, result["task_id"], data)

    def _say(self, method, params):
        self._last_id += 1
        self._send(_line({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}))
        return self._last_id

    def _send(self, line):
        line, self._outgoing = self._outgoing + line, b""
        # A line that is begun is sent whole: until then nothing is stopped.
        self._is_sending = True
        try:
            self._socket.sendall(line)
        finally:
            self._is_sending = False
        self._look_for_wishes()

    def _wait(self, request):
        while True:
            if self._unread:
                heard = self._unread.pop(0)
            else:
                heard = self._read(0)
            if heard.get("id") != request or "method" in heard:
                # A wish to stop a task that has ended, or what was wrong with a return, which its caller knows.
                continue
            if heard.get("error"):
                raise MinionError(heard["error"].get("message", "the daemon says no"))
            return heard["result"]

    def _read(self, flags):
        """The next line; with MSG_DONTWAIT None where there is none yet."""
        while b"\n" not in self._buffer:
            try:
                chunk = self._socket.recv(1 << 16, flags)
            except BlockingIOError:
                return None
            if not chunk:
                raise MinionError("the worker's daemon hung up")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line)

    def _on_urgent(self, _number, _frame):
        """In the main thread, between two of its steps: so the task that is under way now is the one that is asked about."""
        if not self._is_sending:
            self._look_for_wishes()

    def _look_for_wishes(self):
        task = self._current
        if task is None:
            return
        while True:
            heard = self._read(socket.MSG_DONTWAIT)
            if heard is None:
                return
            if heard.get("method") == "task.cancel":
                if heard["params"].get("task_id") == task:
                    self._current = None
                    raise TaskCancelled(task)
            else:
                self._unread.append(heard)


def _line(message):
    """As it is sent. A lone surrogate, as a file name may have, is no text: it is an error here, and not on the other side."""
    return json.dumps(message, ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"


def _error(message, kind):
    return {"error": {"message": message.encode("utf-8", "replace").decode("utf-8"), "type": kind}}


def _return_line(task_id, said):
    """A notification: what is wrong with it comes back without an id, and is the caller's answer as well."""
    message = {"jsonrpc": "2.0", "method": "task.return", "params": dict(said, task_id=task_id)}
    try:
        return _line(message)
    except (RecursionError, TypeError, ValueError) as error:
        message["params"] = dict(_error("the result is no JSON: %s" % error, type(error).__name__), task_id=task_id)
        return _line(message)


def _coded(result):
    if isinstance(result, (bytes, bytearray, memoryview)):
        data = bytes(result)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(data).decode("ascii")}
    return result
