"""Maps a square over so many numbers with Palpable (from PyPI), and prints how many seconds that took, after a first round of a few.

Exit status 3: it is not installed.
"""

import shutil
import socket
import sys
import tempfile
import time

try:
    from palpable.servants.server import Server
    from palpable.units.client import Client
except ImportError:
    sys.exit(3)

from squares import square

HOST = "127.0.0.1"
SECRET = b"a benchmark on loopback"


def main(count):
    with socket.create_server((HOST, 0)) as free:
        address = free.getsockname()
    logs = tempfile.mkdtemp()
    server = Server(
        logging_folder=logs,
        address=address,
        family="AF_INET",
        authkey=SECRET,
        num_workers=8,
        task_timeout_seconds=3600.0,
        result_retention_capacity=100000,
        result_retention_seconds=600.0,
    )
    server.start()
    try:
        client = Client(address=address, family="AF_INET", authkey=SECRET)
        client.map(square, range(5))
        began = time.monotonic()
        results = client.map(square, range(count))
        took = time.monotonic() - began
        assert len(results) == count, results
        print("took", took, flush=True)
    finally:
        server.stop()
        server.join()
        server.close()
        shutil.rmtree(logs, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
