"""Run the benchmarks: ``python -m bench [NAME …]``; all of them without a name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main(names: list[str]) -> int:
    """Run the named ones, or all; returns 2 for an unknown name."""
    known = sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py"))
    for name in names or known:
        if name not in known:
            sys.stderr.write(f"no benchmark {name!r}; there are {', '.join(known)}\n")
            return 2
        print(f"== {name}")
        importlib.import_module(f"bench.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
