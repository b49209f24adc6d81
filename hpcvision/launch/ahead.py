"""Questions to Slurm that are begun before anybody waits for the answers."""

import shutil

from hpcvision.launch import accounting, queue
from hpcvision.launch.profile import Profile


def ask_ahead(profile: Profile) -> None:
    """Begin to ask what a submission wants to know: Slurm answers while Python imports the rest, in 0.01 to 0.3 s."""
    wanted: list[tuple[str, ...]] = [queue.PARTITIONS, accounting.question_of_manager()]
    if profile.max_submitted_jobs:
        wanted.append(queue.OWN_JOBS)
    if profile.qos:
        wanted.append(("sacctmgr", *accounting.ROWS, *accounting.question_of_accounts()))
    for command in wanted:
        if shutil.which(command[0]):
            queue.asked_ahead[command] = queue.begin_to_ask(*command)
