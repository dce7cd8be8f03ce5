"""Expressions of PromQL taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import promql_parser


def nodes(
    tree: promql_parser.Expr, above: tuple[promql_parser.Expr, ...] = ()
) -> Iterator[tuple[Any, tuple[promql_parser.Expr, ...]]]:
    """Each part of an expression with what lies above it, the nearest last."""
    yield tree, above
    inner = [getattr(tree, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector")]
    for each in [*inner, *getattr(tree, "args", ())]:
        if isinstance(each, promql_parser.Expr):
            yield from nodes(each, (*above, tree))


def selectors_of(expression: str) -> Iterator[tuple[Any, tuple[promql_parser.Expr, ...]]]:
    """Each selector of an expression, which must be PromQL, with what lies above it."""
    found = nodes(promql_parser.parse(expression))
    return ((node, above) for node, above in found if isinstance(node, promql_parser.VectorSelector))
