"""Errors that a user can cause: one line, no traceback, a non-zero exit code."""


class UserError(Exception):
    """What was wrong, the value seen, the limit or the choices, and what to do, in one line."""

    exit_code = 2


class CapExceeded(UserError):
    """A model or a step budget above the hard cap of its track."""


class FolderInUse(UserError):
    """Another process trains in the run's folder."""


class TrainingStopped(UserError):
    """A run that cannot go on (a non-finite loss, a rank that never came); its last good checkpoint is intact."""

    exit_code = 3
