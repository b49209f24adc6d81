"""Process entry of one rank: `python -m hpcvision.launch.worker FOLDER`, of a run or of a request to draw."""

import signal
import sys
from pathlib import Path

from hpcvision.errors import UserError
from hpcvision.launch.generate import run_request
from hpcvision.launch.job import TrainJob
from hpcvision.rundir import RunDir
from hpcvision.stopping import StopRequest, end_process


def main() -> int:
    """Train or draw; the words of a failure are in FAILED.txt or a pipe, and the starter shows them."""
    # A wish to stop that comes when the last step is done comes too late: what is left is shorter than a restart.
    for number in StopRequest.SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    folder = RunDir(Path(sys.argv[1]))
    try:
        if folder.request.exists():
            run_request(folder)
        else:
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
