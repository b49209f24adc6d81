"""What came of a claim."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["PASS", "FAIL", "SKIP"]
MOST_NAMED = 5
"""Of broken datasets and attributes, so many are named."""


@dataclass(frozen=True)
class Finding:
    """One claim of an archive and what came of it."""

    verdict: Verdict
    subject: str
    words: str
