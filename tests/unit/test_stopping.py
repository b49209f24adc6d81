"""When a process listens to signals, and when it no longer does."""

import os
import signal

import pytest

from hpcvision.stopping import StopRequest


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
