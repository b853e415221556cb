"""What the generator's own processes load by ``locust -f``."""

from ts_mps.bench.load.users import TorchServeUser

__all__ = ["TorchServeUser"]
