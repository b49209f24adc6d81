"""One line of the doctor."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """What was found about one subject."""

    verdict: Verdict
    subject: str
    words: str
    """What was found and, unless it is well, the command or the change that mends it."""
