"""Signals that tell a process to stop: when it does, and with which code."""

import os
import signal
import subprocess
import sys

import pytest

from loralight.stopping import SIGNALS, Stopped, check, held, listen, told

TWICE = """
import os, signal, time
from loralight.stopping import held, listen
with listen(), held():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # one request still: torchrun passes on what its processes have heard
    print("goes on", flush=True)
    time.sleep(1.1)
    os.kill(os.getpid(), signal.SIGTERM)
    print("and on", flush=True)
"""

READER = """
import signal
from loralight.stopping import outlive
outlive()
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)],
    ids=lambda value: str(value),
)
def test_a_signal_stops_at_once_unless_it_is_held(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, listen():
        os.kill(os.getpid(), number)
    assert caught.value.code == code
    with listen():
        with held():
            os.kill(os.getpid(), number)
            assert told() == number
        with pytest.raises(Stopped) as caught:
            check()
    assert caught.value.code == code
    assert told() is None and signal.getsignal(number) is before


def test_what_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listen():
            os.kill(os.getpid(), signal.SIGINT)
            assert told() is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_signal_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "goes on\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a signal does not say who sent it")
def test_a_process_that_reads_data_ends_by_its_trainer_alone() -> None:
    reader = subprocess.Popen([sys.executable, "-c", READER], stdout=subprocess.PIPE, text=True)
    with reader:
        assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
        for number in SIGNALS:
            subprocess.run(["kill", f"-{signal.Signals(number).name[3:]}", str(reader.pid)], check=True)
        while reader.poll() is None:
            reader.terminate()
    assert reader.returncode == 0
