"""The rules of the house, held by walking the syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "otel_mlops"
MOST_LINES = 400

DOWNWARD = {
    "manifests": set(),
    "metrics": set(),
    "settings": set(),
    "numbers": set(),
    "people": set(),
    "rules": {"metrics"},
    "dashboards": {"metrics"},
    "profile": {"numbers"},
    "sdk": {"metrics", "numbers", "people", "settings"},
    "sources": {"metrics"},
    "otlp": {"metrics", "sdk", "settings"},
    "daily": {"metrics", "numbers", "sdk"},
    "energy": {"metrics", "numbers", "sdk", "settings", "sources"},
    "facts": {"metrics", "sdk"},
    "model": {"facts", "metrics", "numbers", "profile", "sdk"},
    "pauses": {"metrics", "sdk"},
    "tasks": {"metrics", "numbers", "sdk"},
    "verbs": {"facts", "metrics", "numbers", "sdk"},
    "web": {"metrics", "numbers", "sdk"},
}
DOWNWARD["scores"] = {"metrics", "numbers", "profile", "sdk", "settings", "sources"}
DOWNWARD["leading"] = {"daily", "energy", "metrics", "otlp", "page_process", "scores", "sdk", "settings", "sources"}
DOWNWARD["page_process"] = {"sdk", "settings", "telemetry"}  # the child's side is on top of everything
DOWNWARD["telemetry"] = set(DOWNWARD) - {"dashboards", "manifests", "rules"}
DOWNWARD["configure"] = {"sdk", "settings", "telemetry"}
ON_TOP = {"__init__", "cli", "demo", "doctor", "render", "testing"}
COSTLY = {"amdsmi", "apscheduler", "fastapi", "numpy", "prometheus_client", "psutil", "pynvml", "starlette"}
BANNED_WORDS = {
    "abstract", "base", "common", "factory", "helper", "helpers", "impl", "manager", "util", "utils",
}  # fmt: skip
NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
PRINTS = {"cli", "render"}
GETS_WHAT_IS_MISSING = re.compile(r"\b(make|install|run)\b", re.IGNORECASE)

Check = Callable[[ast.Module, str, Path], Iterator[str]]


def part_of(path: Path) -> str:
    """The part of the house a file belongs to: the module's or the folder's name right below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST, path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Each import statement under a node with the absolute name it asks for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node, f"{module}.{alias.name}") for alias in node.names)


def at_import_time(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported: not in a function, not for type checkers only."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from (statement for other in child.orelse for statement in at_import_time(other))
            continue
        if isinstance(child, ast.stmt):
            yield child
        yield from at_import_time(child)


def imports_run_downward(tree: ast.Module, source: str, path: Path) -> Iterator[str]:
    """A part imports only the parts below it."""
    part = part_of(path)
    if part in ON_TOP:
        return
    if part not in DOWNWARD:
        yield f"1: {part} is no part of the house; give it a place in DOWNWARD"
        return
    for node, name in imported(tree, path):
        package, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if package == PACKAGE.name and target != part and target not in DOWNWARD[part]:
            yield f"{node.lineno}: {part} imports {name}"


def a_source_has_one_driver(tree: ast.Module, source: str, path: Path) -> Iterator[str]:
    """A file in sources imports one costly package at most, and only inside the function that opens it."""
    if part_of(path) != "sources":
        return
    drivers = {name.partition(".")[0] for _, name in imported(tree, path)} & COSTLY
    if len(drivers) > 1:
        yield f"1: {sorted(drivers)}"
    for statement in at_import_time(tree):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            for _, name in imported(ast.Module([statement], []), path):
                if name.partition(".")[0] in COSTLY:
                    yield f"{statement.lineno}: {name} is imported with the module"


def files_are_short(tree: ast.Module, source: str, path: Path) -> Iterator[str]:
    """No file grows past what can be read at one sitting."""
    lines = source.count("\n")
    if lines > MOST_LINES:
        yield f"{lines}: more than {MOST_LINES} lines"


def names_say_something(tree: ast.Module, source: str, path: Path) -> Iterator[str]:
    """No file or class is named by a word that fits anything."""
    if BANNED_WORDS & set(path.stem.split("_")):
        yield f"1: file {path.stem}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", node.name)}
            if BANNED_WORDS & words:
                yield f"{node.lineno}: class {node.name}"


def no_exception_vanishes(tree: ast.Module, source: str, path: Path) -> Iterator[str]:
    """A caught exception is handled, logged or counted; suppress() takes narrow classes and says why."""
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            silent = all(
                isinstance(statement, ast.Pass | ast.Continue | ast.Break)
                or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
                for statement in node.body
            )
            if silent:
                yield f"{node.lineno}: silent except"
            elif node.type is None and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node)):
                yield f"{node.lineno}: bare except that does not raise again"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "suppress":
            broad = {"Exception", "BaseException"} & {ast.unparse(argument) for argument in node.args}
            explained = any("#" in line for line in lines[max(node.lineno - 2, 0) : node.lineno])
            if broad or not explained:
                yield f"{node.lineno}: suppress() of a broad class, or without a comment that says why"


def nothing_prints(tree: ast.Module, source: str, path: Path) -> Iterator[str]:
    """Only the command line writes to standard output."""
    if part_of(path) in PRINTS:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{node.lineno}: print()"


def public_names_are_documented(tree: ast.Module, source: str, path: Path) -> Iterator[str]:
    """Each public module, class and function has a docstring.

    An @override has its original's; the methods of a Protocol are told by its name and the class's docstring.
    """
    if source.strip() and ast.get_docstring(tree) is None:
        yield "1: module"
    yield from _undocumented(tree, "")


def _undocumented(owner: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for node in owner.body:
        if not isinstance(node, NAMED) or node.name.startswith("_"):
            continue
        marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
        if ast.get_docstring(node) is None and not marks & {"override", "overload", "setter"}:
            yield f"{node.lineno}: {prefix}{node.name}"
        if isinstance(node, ast.ClassDef) and "Protocol" not in map(ast.unparse, node.bases):
            yield from _undocumented(node, f"{prefix}{node.name}.")


def each_test_states_a_fact(tree: ast.Module, source: str, path: Path) -> Iterator[str]:
    """Each test has a docstring of one sentence: the fact that holds."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in chain(tree.body, *(each.body for each in classes)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            fact = ast.get_docstring(node) or ""
            if not fact.endswith(".") or "\n\n" in fact:
                yield f"{node.lineno}: {node.name}"


def each_skip_says_how(tree: ast.Module, source: str, path: Path) -> Iterator[str]:
    """The reason of a skip says how to get what is missing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == "importorskip" or (name in {"skip", "skipif"} and "pytest" in ast.unparse(node.func)):
                reasons = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
                reason = reasons or (node.args[:1] if name == "skip" else [])
                if not reason or not GETS_WHAT_IS_MISSING.search(ast.unparse(reason[0])):
                    yield f"{node.lineno}: {ast.unparse(node)}"


RULES: dict[str, tuple[Check, ...]] = {
    "otel_mlops": (
        imports_run_downward, a_source_has_one_driver, files_are_short, names_say_something, no_exception_vanishes,
        nothing_prints, public_names_are_documented,
    ),
    "benchmarks": (public_names_are_documented, no_exception_vanishes),
    "tests": (each_test_states_a_fact, each_skip_says_how),
}  # fmt: skip


@pytest.mark.parametrize("folder", RULES)
def test_the_rules_hold_in_every_file(folder: str):
    """No file of the folder breaks one of its rules."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    broken = []
    for path in paths:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source, str(path))  # not kept: it would slow the collector for all other tests
        broken += [
            f"{path.relative_to(ROOT)}:{finding} ({rule.__doc__})"
            for rule in RULES[folder]
            for finding in rule(tree, source, path)
        ]
    assert not broken, "\n".join(broken)


BREAKS: list[tuple[Check, str, str]] = [
    (imports_run_downward, "metrics.py", "from otel_mlops.settings import Settings"),
    (imports_run_downward, "sdk/page.py", "def f():\n    from .. import telemetry"),
    (imports_run_downward, "sources/host.py", "from ..sdk.provider import MeterProvider"),
    (imports_run_downward, "web.py", "import otel_mlops.telemetry"),
    (imports_run_downward, "numbers/drift.py", "from otel_mlops import Telemetry"),
    (imports_run_downward, "plumbing.py", "import os"),
    (a_source_has_one_driver, "sources/host.py", "try:\n    import numpy\nexcept ImportError:\n    ..."),
    (a_source_has_one_driver, "sources/host.py", "class Source:\n    import numpy"),
    (a_source_has_one_driver, "sources/host.py", "def f():\n    import psutil\n    import pynvml"),
    (files_are_short, "metrics.py", "\n" * (MOST_LINES + 1)),
    (names_say_something, "sdk/page_utils.py", ""),
    (names_say_something, "sdk/page.py", "class PageManager: ..."),
    (names_say_something, "sdk/page.py", "class HTTPBase: ..."),
    (no_exception_vanishes, "web.py", "try:\n    f()\nexcept OSError:\n    pass"),
    (no_exception_vanishes, "web.py", "while f():\n    try: ...\n    except OSError: continue"),
    (no_exception_vanishes, "web.py", "try:\n    f()\nexcept:\n    g()"),
    (no_exception_vanishes, "web.py", "# why\nwith suppress(Exception):\n    f()"),
    (no_exception_vanishes, "web.py", "with contextlib.suppress(OSError):\n    f()"),
    (nothing_prints, "web.py", "print('here')"),
    (public_names_are_documented, "web.py", "import os"),
    (public_names_are_documented, "web.py", '"""Web."""\ndef serve(): ...'),
    (public_names_are_documented, "web.py", '"""Web."""\nclass A:\n    """A."""\n    def b(self): ...'),
    (each_test_states_a_fact, "web.py", "def test_it(): ..."),
    (each_test_states_a_fact, "web.py", "class TestIt:\n    def test_it(self): ..."),
    (each_test_states_a_fact, "web.py", 'async def test_it():\n    """It works"""'),
    (each_skip_says_how, "web.py", "pytest.skip('no promtool')"),
    (each_skip_says_how, "web.py", "pytest.importorskip('numpy')"),
    (each_skip_says_how, "web.py", "@pytest.mark.skipif(True, reason='no GPU')\ndef test_it(): ..."),
]


@pytest.mark.parametrize(("rule", "file", "source"), BREAKS)
def test_a_breach_of_the_rule_is_found(rule: Check, file: str, source: str):
    """Each rule finds the mistake it is there for."""
    assert list(rule(ast.parse(source), source, PACKAGE / file))


KEEPS: list[tuple[Check, str, str]] = [
    (imports_run_downward, "sdk/page.py", "from ..metrics import ERRORS\nfrom .group import Group"),
    (imports_run_downward, "telemetry.py", "from .web import f\nfrom .sdk.provider import g"),
    (imports_run_downward, "cli.py", "from otel_mlops import telemetry"),
    (a_source_has_one_driver, "sources/host.py", "def f():\n    import psutil"),
    (a_source_has_one_driver, "sources/host.py", "if TYPE_CHECKING:\n    import psutil"),
    (names_say_something, "sdk/database.py", "class Database: ..."),
    (no_exception_vanishes, "web.py", "try:\n    f()\nexcept OSError as error:\n    log(error)"),
    (no_exception_vanishes, "web.py", "with suppress(KeyError):  # another was first\n    f()"),
    (nothing_prints, "cli.py", "print('page')"),
    (public_names_are_documented, "web.py", '"""Web."""\ndef _inner(): ...\n@override\ndef add(): ...'),
    (
        public_names_are_documented,
        "web.py",
        '"""Web."""\nclass A(Protocol):\n    """A."""\n    def b(self): ...',
    ),
    (each_skip_says_how, "web.py", "pytest.skip('promtool is missing: run make servers')"),
]


@pytest.mark.parametrize(("rule", "file", "source"), KEEPS)
def test_what_keeps_the_rule_passes(rule: Check, file: str, source: str):
    """A rule leaves alone what it allows."""
    assert list(rule(ast.parse(source), source, PACKAGE / file)) == []
