"""What Ladon serves; in a module of its own, as Ladon wants it."""

from ladon.ladonizer import ladonize


class Reporting(object):
    @ladonize(int, rtype=int, tasktype=True)
    def report(self, steps, **keywords):
        for step in range(steps):
            keywords["update_progress"]((step + 1) / steps)
        return steps
