"""``python process.py PARENT CORES ARGUMENT...``: Locust on the named cores only.

It is run as a file: as a module its package would be imported first, and with it much that Locust has to patch before
anybody imports it.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Become Locust. First of all pinned, as threads and processes get the cores of those that start them."""
    parent = int(sys.argv[1])
    os.sched_setaffinity(0, {int(core) for core in sys.argv[2].split(",")})
    del sys.path[0]  # this folder, whose modules are not to be found by their bare names
    sys.argv[:3] = ["locust"]
    from locust.main import main as locust

    from ts_mps.bench.load.dying import die_with

    die_with(parent)
    master = os.getpid()
    # Locust forks its workers, and a worker without its master tries to reach it for minutes.
    os.register_at_fork(after_in_child=lambda: die_with(master))
    locust()


if __name__ == "__main__":
    main()
