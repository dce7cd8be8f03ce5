"""What docs/profile.md shows is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "profile.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("code", BLOCKS)
def test_the_code_of_the_page_runs(code: str):
    """Each block of code runs by itself, its assertions included."""
    exec(compile(code, PAGE.name, "exec"), {"__name__": "docs"})
