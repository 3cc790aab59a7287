"""Runs an unordered flow of so many trivial tasks by TaskFlow's worker engine (from PyPI) over redis, with so many workers, and prints how many seconds
that took, after a first round of a few.

Exit status 3: TaskFlow, kombu, the redis client or the redis server is not installed.
"""

import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time

try:
    import redis
    import taskflow.engines
    from taskflow import task
    from taskflow.engines.worker_based import worker
    from taskflow.patterns import unordered_flow
except ImportError:
    sys.exit(3)

TASKS, WORKERS, PORT, SERVER = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
URL = "redis://127.0.0.1:%d/0" % PORT


class Trivial(task.Task):
    def execute(self):
        return 1


def work(topic):
    worker.Worker(url=URL, exchange="bench", topic=topic, tasks=[Trivial], threads_count=2).run()


def run(count, topics):
    flow = unordered_flow.Flow("bench")
    for number in range(count):
        flow.add(Trivial(name="t%d" % number))
    engine = taskflow.engines.load(flow, engine="worker-based", url=URL, exchange="bench", topics=topics, transition_timeout=60)
    began = time.monotonic()
    engine.run()
    return time.monotonic() - began


def main():
    folder = tempfile.mkdtemp()
    try:
        server = subprocess.Popen(
            [SERVER, "--port", str(PORT), "--bind", "127.0.0.1", "--dir", folder, "--save", ""], stdout=subprocess.DEVNULL
        )
    except FileNotFoundError:
        sys.exit(3)
    workers = []
    try:
        client = redis.Redis(port=PORT)
        deadline = time.monotonic() + 20
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        topics = ["worker%d" % number for number in range(WORKERS)]
        for topic in topics:
            process = multiprocessing.Process(target=work, args=(topic,), daemon=True)
            process.start()
            workers.append(process)
        run(WORKERS, topics)
        print("took", run(TASKS, topics), flush=True)
    finally:
        for process in workers:
            process.kill()
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
