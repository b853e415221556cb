"""ts_mps.mps.holder with a stand-in for libcuda: a context is a client that the simulated daemon lists.

SIM_CUDA_CLIENTS: the cap, one more gets error 808. SIM_CUDA_ERROR="5:999": client 5 gets error 999.
SIM_CUDA_FAULT="5:mute": client 5 never answers; "5:dies": it ends at once; "5:silent": it runs without MPS;
"5:stays": it does not leave when its standard input ends.
"""

import os
import signal
import sys
import time
from pathlib import Path

from ts_mps.mps import holder

NAMES = {2: b"CUDA_ERROR_OUT_OF_MEMORY", 808: b"CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", 999: b"CUDA_ERROR_UNKNOWN"}
CLIENTS = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"]) / "sim-clients"


class Cuda:
    """The functions of libcuda that a holder calls."""

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, device, ordinal):
        device._obj.value = 0
        return 0

    def cuDevicePrimaryCtxRetain(self, context, device):
        CLIENTS.mkdir(exist_ok=True)
        number = len(list(CLIENTS.iterdir())) + 1
        at, _, error = os.environ.get("SIM_CUDA_ERROR", "0:0").partition(":")
        if number == int(at):
            return int(error)
        if number > int(os.environ.get("SIM_CUDA_CLIENTS", "48")):
            return 808
        self.fault(number)
        (CLIENTS / str(os.getpid())).touch()
        return 0

    def fault(self, number):
        at, _, fault = os.environ.get("SIM_CUDA_FAULT", "0:").partition(":")
        if number != int(at):
            return
        if fault == "mute":
            time.sleep(600)
        elif fault == "dies":
            sys.exit("the driver's library is broken")
        elif fault == "silent":
            (CLIENTS / "1000000000").touch()  # in place of our own pid
            holder.hold(type("Elsewhere", (), {name: lambda *_: 0 for name in vars(Cuda) if name.startswith("cu")})())
            sys.exit()
        elif fault == "stays":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (CLIENTS / str(os.getpid())).touch()
            sys.stdout.write('{"step": "", "error": 0, "name": ""}\n')
            sys.stdout.flush()
            time.sleep(600)

    def cuGetErrorName(self, error, name):
        name._obj.value = NAMES.get(error)
        return 0


if __name__ == "__main__":
    holder.hold(Cuda())
