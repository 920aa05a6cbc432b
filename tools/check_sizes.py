"""Fail when a function or a module has outgrown one sitting.

The median is no problem anywhere; what makes code a jungle is the longest function and the longest
module. Lines are counted as a reader meets them, docstrings and comments included.

    python tools/check_sizes.py token_actor workers
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 350


def offenders(path: Path) -> Iterator[str]:
    """Yield one line for each part of a module that is too long."""
    source = path.read_text(encoding="utf-8")
    lines = len(source.splitlines())
    if lines > MODULE_LINES_MAX:
        yield f"{path}: {lines} lines; a module has at most {MODULE_LINES_MAX}"
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{path}:{node.lineno}: {node.name}: {lines} lines; a function has at most {FUNCTION_LINES_MAX}"


def main(roots: list[str]) -> int:
    """Print what is too long under the given folders, and return the exit code."""
    found = [line for root in roots for path in sorted(Path(root).rglob("*.py")) for line in offenders(path)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
