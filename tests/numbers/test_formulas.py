"""What holds for every formula: its example is true, and it needs nothing but Python."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

from otel_mlops import numbers

MODULES = [f"{numbers.__name__}.{module.name}" for module in pkgutil.iter_modules(numbers.__path__)]
OURS = [name for name in MODULES if not name.endswith((".values", ".energy"))]


def functions_of(module: ModuleType) -> list[str]:
    """The names of a module's public functions."""
    return [
        name
        for name, each in vars(module).items()
        if inspect.isroutine(inspect.unwrap(each)) and each.__module__ == module.__name__ and not name.startswith("_")
    ]


@pytest.mark.parametrize("name", MODULES)
def test_each_example_is_true(name: str):
    """The examples in the docstrings of a module give what they say."""
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0
    assert results.attempted > 0


@pytest.mark.parametrize("name", OURS)
def test_each_formula_has_an_example(name: str):
    """A public function of the formulas shows a call with its answer."""
    module = importlib.import_module(name)
    names = functions_of(module)
    assert names
    assert [name for name in names if ">>> " not in (inspect.getdoc(getattr(module, name)) or "")] == []


def test_the_formulas_import_nothing_costly():
    """All formulas together load neither numpy nor scipy nor the telemetry, and `statistics` only when it is asked."""
    code = (
        "import sys\n"
        "sys.modules['otel_mlops'] = package = type(sys)('otel_mlops')\n"  # the formulas, without the package's root
        f"package.__path__ = {[str(path).removesuffix('/numbers') for path in numbers.__path__]!r}\n"
        f"for name in {OURS!r}: __import__(name)\n"
        "print({'numpy', 'scipy', 'opentelemetry', 'statistics'} & set(sys.modules))\n"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert seen.stdout.strip() == "set()"
