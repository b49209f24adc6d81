"""Process entry of one rank: `python -m hpcvision.launch.worker RUN_FOLDER`."""

import signal
import sys
from pathlib import Path

from hpcvision.errors import UserError
from hpcvision.launch.job import TrainJob
from hpcvision.stopping import StopRequest, end_process


def main() -> int:
    """Train; the words of a failure are in FAILED.txt or in a pipe, and whoever started this process shows them."""
    # A wish to stop that comes when the last step is done comes too late: what is left is shorter than a restart.
    for number in StopRequest.SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    try:
        TrainJob(sys.argv[1])()
    except UserError as error:
        return error.exit_code
    except Exception:
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    assert Path(sys.argv[1]).is_dir(), f"{sys.argv[1]} is made by the launcher"
    end_process(main())
