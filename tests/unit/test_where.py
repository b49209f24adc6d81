"""Conditions on runs: compared, never executed."""

import pytest

from hpcvision.errors import UserError
from hpcvision.results.where import Condition

FACTS = {"model.kind": "baby_mobilenet", "accuracy": 0.6, "seed": 3, "finished": True, "name": "a b"}
TRUE = [
    'model.kind == "baby_mobilenet" and accuracy > 0.5',
    "accuracy >= 0.6 and not seed == 4",
    "0.5 < accuracy < 0.7",
    "seed in [1, 2, 3]",
    '"mobile" in model.kind',
    "finished",
    "seed != -1",
    "accuracy > 0.9 or seed == 3",
    'name == "a b"',
]
FALSE = [
    "accuracy > 0.7",
    "frechet < 3",
    'seed > "x"',
    "seed not in (1, 3)",
    "not finished",
    "5 < missing < 9",
    "missing != 0.1",
    "missing not in [1, 2]",
]
WRONG = [
    "__import__('os').system('true')",
    "accuracy >",
    "open('x')",
    "accuracy + 1 > 2",
    "[x for x in (1,)]",
    "accuracy is 1",
    "(lambda: 1)()",
    "'a'.join(name)",
    "import os",
    "",
    "(" * 500,
    "f'{name}'",
]


@pytest.mark.parametrize("words", TRUE)
def test_a_condition_that_holds(words):
    assert Condition(words).holds(FACTS)


@pytest.mark.parametrize("words", FALSE)
def test_a_condition_that_does_not_hold(words):
    assert not Condition(words).holds(FACTS)


@pytest.mark.parametrize("words", WRONG)
def test_what_is_no_condition_is_refused_in_one_line(words):
    with pytest.raises(UserError, match="--where=") as refused:
        Condition(words)
    assert "write for example" in str(refused.value)


def test_a_name_that_no_run_has_is_refused_with_the_one_that_was_meant():
    with pytest.raises(UserError, match=r"no run has 'model\.kid'; did you mean 'model\.kind'"):
        Condition("model.kid == 3").check_names(set(FACTS))
    Condition("model.kind == 3").check_names(set(FACTS))
