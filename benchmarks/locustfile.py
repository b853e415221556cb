"""Load on a model that any TorchServe serves, by plain Locust.

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8080 --model NAME --payload FILE

Web UI, ``--headless``, ``--processes`` and ``--master``/``--worker`` work as with any locustfile. At the end it prints
percentiles of all latencies of all processes. Locust's ``--help`` does not know a locustfile's own options:

    --model NAME           the model that is asked; with --workload its own name
    --payload PATH...      files with what clients send, or folders of them
    --workload NAME        instead: made payloads, see benchmarks/workloads/
    --content-type TYPE    of the payloads; default: application/json for .json, else none
    --token TOKEN          TorchServe's inference token
    --load KIND            closed: each user has one request in flight (default); poisson or constant: arrivals, whether
                           answers come or not, with latencies from the planned instant on
    --rate N               arrivals per second of all processes; default: 10
    --warm-up S            seconds that are not counted; default: 2
    --seconds S            counted time, after which it ends once the last answer is there; default: until it is
                           stopped, and what is under way then is not counted
    --request-timeout S    default: 60
    --check KIND           status: 200 and not empty (default); reference: also compared with an answer recorded before
    --load-seed N          of arrivals and of the order of payloads; default: 0

Workers on other machines need the same ``--payload`` and a clock in step with the master's, and cannot compare.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # ts_mps, where it is not installed

from ts_mps.bench.load.users import TorchServeUser

__all__ = ["TorchServeUser"]
