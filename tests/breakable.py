"""Handlers that break on demand: the body says how. They know nothing of ts-mps, as a user's handler."""

#: On a real GPU.
REAL = r'''
import ctypes, os, torch

PTX = b"""
.version 7.0
.target sm_80
.address_size 64
.visible .entry wild(.param .u64 address)
{
    .reg .u64 %rd<2>;
    .reg .u32 %r<2>;
    ld.param.u64 %rd1, [address];
    mov.u32 %r1, 7;
    st.global.u32 [%rd1], %r1;
    ret;
}
"""

def checked(status):
    if status != 0:
        raise OSError(f"the driver answered {status}")

class Breakable:
    def initialize(self, context):
        self.table = torch.eye(8, device="cuda")
        self.driver = ctypes.CDLL("libcuda.so.1")
        module, self.kernel = ctypes.c_void_p(), ctypes.c_void_p()
        checked(self.driver.cuModuleLoadData(ctypes.byref(module), PTX))
        checked(self.driver.cuModuleGetFunction(ctypes.byref(self.kernel), module, b"wild"))

    def wild(self):
        address = ctypes.c_uint64(64)  # in the page that nothing is ever mapped to
        arguments = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(address), ctypes.c_void_p))
        checked(self.driver.cuLaunchKernel(self.kernel, 1, 1, 1, 1, 1, 1, 0, None, arguments, None))
        torch.cuda.synchronize()

    def handle(self, data, context):
        body = bytes(data[0].get("body") or b"")
        if body == b"wild":
            self.wild()
        if body == b"swallowed":
            try:
                self.wild()
            except RuntimeError as error:
                return ["something went wrong"] * len(data)
        if body == b"assert":
            self.table[torch.tensor([99], device="cuda")].sum().item()
        if body == b"memory":
            torch.empty(1 << 42, dtype=torch.uint8, device="cuda")
        if body == b"hang":
            torch.cuda._sleep(1 << 42)  # clock cycles: more than half an hour inside one kernel
            torch.cuda.synchronize()
        assert float((self.table @ self.table).sum()) == 8
        return [str(os.getpid())] * len(data)
'''

#: On a simulated GPU, through the simulator's side doors: a client by a file, a faulty server by another.
SIMULATED = """
import os, time, torch
from pathlib import Path

class Breakable:
    def initialize(self, context):
        self.pipe = Path(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
        self.clients = self.pipe / "sim-clients"
        self.clients.mkdir(exist_ok=True)
        (self.clients / str(os.getpid())).touch()

    def wild(self):
        struck = [one.name for one in self.clients.iterdir() if Path("/proc", one.name).exists()]
        (self.pipe / "sim-fault").write_text(" ".join(struck))
        with (self.pipe.parent / "log" / "server.log").open("a") as log:
            log.write("Server is handling a fatal GPU error.\\n")
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def handle(self, data, context):
        body = bytes(data[0].get("body") or b"")
        if body == b"wild":
            self.wild()
        if body == b"memory":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 4096.00 GiB.")
        if body == b"hang":
            time.sleep(1800)
        return [str(os.getpid())] * len(data)
"""
