import signal
import subprocess
import sys
import time
from pathlib import Path

from ts_mps.processes import ProcessId, end, wait_gone, with_arguments


def sleeper(*words):
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *words])


def test_a_zombie_is_not_alive():
    child = sleeper()
    process = ProcessId.of(child.pid)
    assert process.alive()
    child.kill()
    deadline = time.monotonic() + 5
    while process.alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Path(f"/proc/{child.pid}").exists(), "it is a zombie: nobody has waited for it"
    assert not process.alive()
    assert ProcessId.of(child.pid) is None
    child.wait()


def test_another_process_with_the_same_pid_is_not_signalled():
    child = sleeper()
    real = ProcessId.of(child.pid)
    impostor = ProcessId(child.pid, real.started + 1)
    assert not impostor.alive()
    assert not impostor.send(signal.SIGKILL)
    assert child.poll() is None
    assert real.send(signal.SIGKILL)
    child.wait()


def test_wait_gone_gives_those_that_stay():
    stays, goes = sleeper(), sleeper()
    both = (ProcessId.of(stays.pid), ProcessId.of(goes.pid))
    goes.kill()
    assert wait_gone(both, 0.5) == (both[0],)
    assert wait_gone((both[1],), 5.0) == ()
    stays.kill()
    for child in (stays, goes):
        child.wait()


def test_end_kills_what_ignores_sigterm():
    script = "import signal,time; signal.signal(15, signal.SIG_IGN); print('x', flush=True); time.sleep(60)"
    stubborn = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    stubborn.stdout.read(1)
    assert not end(ProcessId.of(stubborn.pid), 0.3)
    assert stubborn.wait(5) == -signal.SIGKILL
    willing = sleeper()
    assert end(ProcessId.of(willing.pid), 5)
    willing.wait()


def test_processes_are_found_by_whole_arguments():
    child = sleeper("needle-7f3", "second")
    deadline = time.monotonic() + 5
    while not with_arguments("needle-7f3", "second") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert with_arguments("needle-7f3", "second") == (ProcessId.of(child.pid),)
    assert with_arguments("needle-7f") == ()
    assert with_arguments("needle-7f3", "other") == ()
    child.kill()
    child.wait()
