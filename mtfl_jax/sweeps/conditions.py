"""Conditions on cells, such as "width >= 2*d and tasks != 'parity'": what `sweep.where` understands."""

import ast
import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from mtfl_jax.config import FIELDS
from mtfl_jax.fields import ConfigError

_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.USub: operator.neg,
    ast.Not: np.logical_not,
}


def met(text: str, column: Callable[[str], np.ndarray], count: int) -> np.ndarray:
    """Which of `count` cells meet a condition: a mask. Raises ConfigError.

    Names are fields, whose values `column` gives; only numbers, strings, comparisons, arithmetic, and, or, not are
    understood.
    """

    def refuse(what: str) -> ConfigError:
        return ConfigError(
            "sweep.where", text, f"{what}; allowed: fields, numbers, 'text', comparisons, + - * / // % **, and, or, not"
        )

    def value(node: ast.AST) -> Any:
        match node:
            case ast.Expression(body=body):
                return value(body)
            case ast.Constant(value=int() | float() | str() as constant):
                return constant
            case ast.Name(id=name):
                if name not in FIELDS:
                    raise refuse(f"{name} is no field")
                return column(name)
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.BoolOp(op=op, values=parts):
                join = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return functools.reduce(join, [value(part) for part in parts])
            case ast.Compare(left=left, ops=ops, comparators=rights) if all(type(op) in _OPERATORS for op in ops):
                sides = [value(left), *(value(right) for right in rights)]
                pairs = zip(ops, itertools.pairwise(sides), strict=True)
                return functools.reduce(np.logical_and, [_OPERATORS[type(op)](*pair) for op, pair in pairs])
        raise refuse("not understood")

    try:
        mask = np.asarray(value(ast.parse(text, mode="eval")))
    except ConfigError:
        raise
    except (SyntaxError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise refuse(str(error).splitlines()[0]) from None
    if mask.dtype == object and all(isinstance(item, bool | np.bool_) for item in mask.flat):
        mask = mask.astype(bool)
    if mask.shape not in ((), (count,)) or mask.dtype != bool:
        raise refuse("not a condition")
    return np.broadcast_to(mask, (count,))
