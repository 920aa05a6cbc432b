"""The example of the page about limits runs, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs/limits.md").read_text()


def test_the_headers_are_those_that_the_page_shows(capsys):
    (found,) = re.findall(
        r"<!-- runs: tests/integrations/test_docs.py -->\n```python\n(.*?)```\n\n```\n(.*?)```", PAGE, re.DOTALL
    )
    code, printed = found
    exec(compile(code, "limits.md", "exec"), {})
    assert capsys.readouterr().out == printed
