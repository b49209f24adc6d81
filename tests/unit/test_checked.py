"""What a login node finds out about a run, and remembers."""

import pytest

from hpcvision.config import apply
from hpcvision.errors import CapExceeded
from hpcvision.launch import checked


@pytest.fixture
def found(monkeypatch, tmp_path):
    """The configurations whose model was looked at."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    find, configs = checked.find, []
    monkeypatch.setattr(checked, "find", lambda config: configs.append(config) or find(config))
    return configs


def test_a_model_is_counted_once_whatever_its_seed_and_anew_for_another_width(config, found):
    facts = checked.facts_of(config)
    assert checked.facts_of(apply(config, {"seed": 1})) == facts
    assert len(found) == 1
    assert checked.facts_of(apply(config, {"model.width": 0.06})) != facts
    assert len(found) == 2


def test_a_model_over_the_cap_is_refused_every_time(config, found):
    for _ in range(2):
        with pytest.raises(CapExceeded):
            checked.facts_of(apply(config, {"model.width": 3}))
    assert len(found) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', "\0"])
def test_a_damaged_or_missing_memory_only_costs_time(config, found, content):
    facts = checked.facts_of(config)
    (checked.cache_folder() / "checked.json").write_text(content)
    assert checked.facts_of(config) == facts
    assert checked.facts_of(config) == facts
    assert len(found) == 2


def test_where_nothing_can_be_remembered_a_model_is_counted_again(config, found, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    assert checked.facts_of(config) == checked.facts_of(config)
    assert len(found) == 2


def test_the_latest_models_are_remembered_and_not_more(config, found, monkeypatch):
    monkeypatch.setattr(checked, "MOST_KNOWN", 2)
    for width in (0.05, 0.06, 0.07, 0.06, 0.05):
        checked.facts_of(apply(config, {"model.width": width}))
    assert len(found) == 4
