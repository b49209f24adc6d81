"""When a process listens to signals, and when it no longer does."""

import os
import signal
import subprocess
import sys

import pytest

from hpcvision.stopping import StopRequest, leave_seconds


@pytest.fixture
def handlers():
    """The handlers of a process that nobody has changed, restored afterwards."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in StopRequest.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_is_remembered_and_afterwards_does_what_it_did_before():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.code == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.usefixtures("handlers")
def test_the_last_one_of_a_process_leaves_it_deaf_also_after_an_error():
    with pytest.raises(OSError, match="disk"), StopRequest(deaf_afterwards=True):
        raise OSError("disk")
    for number in StopRequest.SIGNALS:
        os.kill(os.getpid(), number)  # would end this process


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_the_starter_had_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.code == 0


@pytest.mark.parametrize(
    ("does", "code", "says"),
    [
        ("pass", 0, ""),
        ("sys.exit(7)", 0, ""),
        ("end_at_exit(3); sys.exit(7)", 3, ""),
        ("raise ValueError('lost')", 1, "ValueError: lost"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
    ],
)
def test_a_process_that_is_to_end_at_exit_is_not_taken_apart_and_has_the_code_that_was_told(does, code, says):
    program = "import atexit, sys; atexit.register(print, 'taken apart')\n"
    program += f"from hpcvision.stopping import end_at_exit; end_at_exit(9); end_at_exit(0); {does}"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    lines = process.stderr.splitlines() or [""]
    assert (process.returncode, process.stdout, lines[-1]) == (code, "", says)


def test_a_short_stay_keeps_a_quarter_of_itself_free_and_a_long_one_a_minute():
    assert (leave_seconds(60), leave_seconds(240), leave_seconds(86400)) == (15, 60, 60)
