"""Conditions on runs as a user writes them: `model.kind == "baby_mobilenet" and accuracy > 0.5`."""

import ast
import operator
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from hpcvision.errors import UserError

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}
EXAMPLE = 'write for example model.kind == "baby_mobilenet" and accuracy > 0.5'


class Condition:
    """A condition that runs fulfil or not; its words are never executed, only compared.

    Names are those of a run's facts and of its configuration's settings; and, or, not, comparisons and `in` join them.
    """

    def __init__(self, words: str) -> None:
        """Raises UserError for words that are no condition."""
        self.words = words
        try:
            self.tree = ast.parse(words.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise UserError(f"--where={words!r} is no condition; {EXAMPLE}") from None
        self.names = {name for node in ast.walk(self.tree) if (name := dotted(node)) and not self.is_part(node)}
        self.value_of(self.tree, None)

    def is_part(self, node: ast.AST) -> bool:
        """True for `model` in `model.kind`."""
        return any(isinstance(other, ast.Attribute) and other.value is node for other in ast.walk(self.tree))

    def holds(self, facts: Mapping[str, Any]) -> bool:
        """True when a run with these facts fulfils it; a fact that the run has not makes its comparison false."""
        return bool(self.value_of(self.tree, facts))

    def check_names(self, known: set[str]) -> None:
        """Raise UserError for a name that no run has."""
        for name in sorted(self.names - known):
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}" if near else f"choose from {', '.join(sorted(known)[:5])}, ..."
            raise UserError(f"--where={self.words!r}: no run has {name!r}; {hint}")

    def value_of(self, node: ast.expr, facts: Mapping[str, Any] | None) -> Any:
        """The value of a part; without facts only looks whether all parts are allowed."""
        match node:
            case ast.BoolOp(op=joined, values=values):
                found = [self.value_of(value, facts) for value in values]
                return all(found) if isinstance(joined, ast.And) else any(found)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self.value_of(operand, facts)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
            case ast.Constant(value=value):
                return value
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return [self.value_of(item, facts) for item in items]
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [self.value_of(side, facts) for side in (left, *others)]
                known = facts is not None and all(dotted(side) in ("", *facts) for side in (left, *others))
                if any(type(op) not in COMPARISONS for op in ops):
                    raise UserError(f"--where={self.words!r}: use ==, !=, <, <=, >, >= and in; {EXAMPLE}")
                return known and all(
                    compared(op, one, other) for op, one, other in zip(ops, sides, sides[1:], strict=False)
                )
            case _ if name := dotted(node):
                return facts.get(name) if facts is not None else None
        raise UserError(f"--where={self.words!r}: {ast.unparse(node)!r} is not understood; {EXAMPLE}")


def compared(op: ast.cmpop, one: Any, other: Any) -> bool:
    """One comparison; False where the two cannot be compared, as with a score that a run has not."""
    try:
        return bool(COMPARISONS[type(op)](one, other))
    except TypeError:
        return False


def dotted(node: ast.AST) -> str:
    """`model.kind` of the nodes that it is parsed into; nothing for any other node."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""
