"""So many tasks with progress, one after the other, with Ladon (from PyPI): started, asked how far they are until they have ended, result read.

It prints how many seconds that took, after a few to warm up. Ladon's own WSGI application serves in a process of its own, by wsgiref as in Ladon's
documentation. The client is http.client and Ladon's JSON-WSP: Ladon's own client of 1.0.7 names a module that it has not imported, and ends with
a NameError on Python 3. Exit status 3: it is not installed.
"""

import collections
import contextlib
import http.client
import inspect
import json
import multiprocessing
import sys
import threading
import time
import warnings

warnings.simplefilter("ignore")

if not hasattr(inspect, "getargspec"):
    # Ladon 1.0.7 asks for it as a task starts; Python 3.11 has taken it away, and every task would end with an AttributeError.
    ArgSpec = collections.namedtuple("ArgSpec", "args varargs keywords defaults")
    inspect.getargspec = lambda function: ArgSpec(*inspect.getfullargspec(function)[:4])

try:
    from ladon.server.wsgi import LadonWSGIApplication
except ImportError:
    sys.exit(3)

from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

HOST = "127.0.0.1"


class Quiet(WSGIRequestHandler):
    """Writes no line for each request."""

    def log_message(self, *_):
        pass


def serve(pipe):
    here = __file__.rsplit("/", 1)[0]
    application = LadonWSGIApplication(["reporting"], [here], catalog_name="bench", catalog_desc="bench")
    server = make_server(HOST, 0, application, server_class=WSGIServer, handler_class=Quiet)
    # What this process's parent does with its end is enough to end it.
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(server.server_port)
    pipe.recv()


def ask(port, method, **args):
    # Its server closes each connection.
    with contextlib.closing(http.client.HTTPConnection(HOST, port)) as connection:
        said = json.dumps({"type": "jsonwsp/request", "version": "1.0", "methodname": method, "args": args})
        connection.request("POST", "/Reporting/jsonwsp", said, {"Content-Type": "application/json; charset=utf-8"})
        return json.loads(connection.getresponse().read())


def round_trip(port):
    task = ask(port, "report", steps=2)["result"]["task_id"]
    while ask(port, "report_progress", task_id=task)["result"]["progress"] < 1.0:
        pass
    # The method says 1.0 before it returns.
    while True:
        answer = ask(port, "report_result", task_id=task)
        if "result" in answer:
            assert answer["result"] == 2, answer
            return


def main(count):
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    for _ in range(20):
        round_trip(port)
    began = time.monotonic()
    for _ in range(count):
        round_trip(port)
    print("took", time.monotonic() - began, flush=True)
    ours.send(None)
    server.join(5)


if __name__ == "__main__":
    main(int(sys.argv[1]))
