"""The load of a benchmark, on Locust: requests to TorchServe in a closed or an open loop, counted and checked.

Locust patches the standard library for gevent as soon as it is imported. So nothing that can be imported from here
imports it: the generator is made of processes of its own.
"""

from ts_mps.bench.load.bodies import read_bodies, write_bodies
from ts_mps.bench.load.generate import LoadError, Standby, generate, standby
from ts_mps.bench.load.references import record_references
from ts_mps.bench.load.spec import Spec
from ts_mps.bench.load.workloads import Prepared, Workload, prepare, workload

__all__ = [
    "LoadError",
    "Prepared",
    "Spec",
    "Standby",
    "Workload",
    "generate",
    "prepare",
    "read_bodies",
    "record_references",
    "standby",
    "workload",
    "write_bodies",
]
