"""A daemon that is busy with another front-end sends ours away; the command is sent again."""

import time

import pytest

from ts_mps.mps.control import Control, DaemonTimeout

#: Refuses as binary version 13000 does, as often as the file beside it has lines.
FRONT_END = """#!/bin/sh
cat > /dev/null
if [ -s "$CUDA_MPS_PIPE_DIRECTORY/refusals" ]; then
  sed -i 1d "$CUDA_MPS_PIPE_DIRECTORY/refusals"
  echo 'Cannot send command to MPS control daemon process' >&2
  exit 1
fi
echo 462
"""


@pytest.fixture
def control(tmp_path):
    binary = tmp_path / "nvidia-cuda-mps-control"
    binary.write_text(FRONT_END)
    binary.chmod(0o755)
    return lambda timeout: Control(tmp_path, environ={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=timeout)


def test_it_asks_again(control, tmp_path):
    (tmp_path / "refusals").write_text("x\n" * 5)
    assert control(10.0).servers() == (462,)


def test_it_gives_up_at_the_timeout(control, tmp_path):
    (tmp_path / "refusals").write_text("x\n" * 100000)
    began = time.monotonic()
    with pytest.raises(DaemonTimeout, match=r"'get_server_list' within 0.5 s"):
        control(0.5).servers()
    assert time.monotonic() - began < 3
