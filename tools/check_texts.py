"""Fail when a file names a package index or a path of the machine it was written on.

Both work for one person only, and a lock or a document picks them up unnoticed. Looks at every file
that git tracks or would add.

    python tools/check_texts.py
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Put together here, so that this file does not contain what it looks for.
INDEX_HOSTS = ("pypi" + ".", "files." + "pythonhosted", "index" + "-url", "find" + "-links")
FOLDERS = ("work", "root", "tmp/probe")  # absolute; the same words inside a path are fine
FORBIDDEN = re.compile("|".join([*map(re.escape, INDEX_HOSTS), rf"(?<![\w.*~}})-])/(?:{'|'.join(FOLDERS)})[/\s]"]))


def candidates() -> Iterator[Path]:
    """Yield the files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in listed.split("\0"):
        path = Path(name)
        if name and path.is_file() and not path.is_symlink():
            yield path


def offenders(path: Path) -> Iterator[str]:
    """Yield one line for each place in a text file that must not be committed."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return  # not a text
    for number, line in enumerate(text.splitlines(), 1):
        match = FORBIDDEN.search(line)
        if match:
            yield f"{path}:{number}: names {match.group()!r}, which only this machine has"


def main() -> int:
    """Print what names an index or a machine, and return the exit code."""
    if not Path(".git").exists():
        print("not a git checkout: nothing is about to be committed", file=sys.stderr)
        return 0
    found = [line for path in candidates() for line in offenders(path)]
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
