"""Facts for the planner's tests: GPUs of round sizes, models with made-up curves."""

from ts_mps.plan.facts import Facts, GpuFacts, HostFacts, ModelFacts, Policy, WorkerMemory, WorkerWish
from ts_mps.plan.profile import BatchRun, Profile, ScaleRun

GIB = 2**30
HOST = HostFacts(cores=tuple(range(64)))
AUTO = WorkerWish(1, None, "auto")


def gpu(index=0, memory=80, **more):
    """A GPU of so many GiB."""
    return GpuFacts(index, f"GPU-{index}", "H200", int(memory * GIB), sms=132, **more)


def fixed(workers):
    return WorkerWish(workers, workers, "--workers")


def memory(total, source="profile"):
    """A worker of so many GiB."""
    return WorkerMemory(int(total * GIB), 0, 0, source)


def profile(
    on=(), off=(), batch=8, limited=(), milliseconds=7.6, gap=0.4, gpu="H200", runs=True, gpu_ms=None, cpu_ms=None
):
    """``on`` and ``off``: {workers: requests per second}; ``limited``: {percentage: milliseconds}."""
    alone = [BatchRun(batch, None, 132, milliseconds, 1, 9, gpu_ms, 20, 0, 0, 0, cpu_ms)] if runs else []
    shares = [BatchRun(batch, share, 0, slow, 1, 9, None, 20, 0, 0, 0) for share, slow in dict(limited).items()]
    scaling = [
        ScaleRun(number, mps, batch, rate, rate, rate)
        for mps, rates in ((True, dict(on)), (False, dict(off)))
        for number, rate in rates.items()
    ]
    return Profile("m", "m.mar", "0", gpu, 132, (*alone, *shares), tuple(scaling), gap, {})


def model(name="m", workers=AUTO, gib=None, source="profile", batch_size=8, **more):
    size = None if gib is None else memory(gib, source)
    return ModelFacts(name, "1.0", workers, batch_size=batch_size, memory=size, **more)


def facts(models, gpus=None, host=HOST, mps="auto", **policy):
    """Facts without a reserve, a margin or a server's share unless they are asked for."""
    rules = Policy(**{"reserve": 0, "memory_margin": 0.0, **policy})
    return Facts(tuple(gpus if gpus is not None else [gpu()]), tuple(models), host, rules, mps)
