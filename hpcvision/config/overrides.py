"""`dotted.path=value`, the one spelling of a change to a configuration, and the errors for a mistyped one."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from hpcvision.config.frozen import Frozen
from hpcvision.config.models import MODEL_CONFIGS
from hpcvision.config.run import RunConfig, flatten
from hpcvision.config.task import TASK_CONFIGS
from hpcvision.errors import UserError

VARIANTS: dict[str, tuple[type[Frozen], ...]] = {"model.kind": MODEL_CONFIGS, "task.kind": TASK_CONFIGS}


def parse(assignments: Iterable[str]) -> dict[str, Any]:
    """`{"optim.learning_rate": 0.003}` of `["optim.learning_rate=3e-3"]`; a value that is not JSON is a string."""
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not key:
            raise UserError(f"{assignment!r} is not key=value; write for example optim.learning_rate=3e-4")
        try:
            overrides[key.strip()] = None if text in ("none", "None") else json.loads(text)
        except json.JSONDecodeError:
            overrides[key.strip()] = text
    return overrides


def unparse(overrides: Mapping[str, Any]) -> list[str]:
    """Assignments that `parse` reads as these overrides."""
    plain = {key: f"{key}={value}" for key, value in overrides.items() if isinstance(value, str)}
    return [
        plain[key] if key in plain and parse([plain[key]]) == {key: value} else f"{key}={json.dumps(value)}"
        for key, value in overrides.items()
    ]


def apply(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """A new configuration with the dotted keys replaced; raises UserError for an unknown key or a bad value."""
    tree = config.model_dump(mode="json")
    # A new `kind` brings its own fields with their defaults, so it goes first and clears the old variant's.
    for key in sorted(overrides, key=lambda key: key not in VARIANTS):
        *parents, leaf = key.split(".")
        if key in VARIANTS and overrides[key] != tree[parents[0]]["kind"]:
            tree[parents[0]] = defaults_of_kind(key, overrides[key])
            continue
        node: Any = tree
        for name in parents:
            node = node.get(name) if isinstance(node, dict) else None
        if not isinstance(node, dict) or leaf not in node or isinstance(node[leaf], dict):
            raise UserError(unknown_key(key, flatten(tree)))
        # pydantic would take true for the number 1.
        if isinstance(overrides[key], bool) and not isinstance(node[leaf], bool):
            raise UserError(f"{key}={json.dumps(overrides[key])}: this setting is not a switch")
        node[leaf] = overrides[key]
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(one_line(error)) from None


def defaults_of_kind(key: str, kind: Any) -> dict[str, Any]:
    """The part named by `model.kind` or `task.kind`, with the defaults of that kind."""
    for variant in VARIANTS[key]:
        if variant.model_fields["kind"].default == kind:
            return variant().model_dump(mode="json")
    choices = ", ".join(variant.model_fields["kind"].default for variant in VARIANTS[key])
    raise UserError(f"{key}={kind!r} does not exist; choose one of {choices}")


def unknown_key(key: str, known: Mapping[str, Any]) -> str:
    """The error text for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:  # the right last word under the wrong parent
        near = [name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:1]
    hint = f"did you mean {near[0]!r}?" if near else f"the parts are {', '.join(RunConfig.model_fields)}"
    return f"unknown key {key!r}; {hint}"


def one_line(error: ValidationError) -> str:
    """The first problem of a pydantic error as `key=value: what is wrong`."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    # pydantic puts the kind of a variant into the path; the user's key does not have it.
    kinds = {variant.model_fields["kind"].default for variants in VARIANTS.values() for variant in variants}
    key = ".".join(str(part) for part in first["loc"] if part not in kinds)
    if f"{key}.kind" in VARIANTS and first["type"] not in ("value_error", "missing"):
        choices = " or ".join(variant.__name__ for variant in VARIANTS[f"{key}.kind"])
        return f"{key} is not a {choices}; a network of your own needs a configuration: CONTRIBUTING.md"
    # A check of several settings together names them itself; its input is the whole part.
    if not key or first["type"] == "value_error":
        return message
    return f"{key}: {message}" if first["type"] == "missing" else f"{key}={first['input']!r}: {message}"
