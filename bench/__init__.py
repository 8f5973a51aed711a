"""Benchmarks, each beside a peer in the same run; ratios count, absolutes do not.

``python -m bench [NAME …]``, or ``python -m bench.NAME`` with options of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of one benchmark; its defaults where the command line names benchmarks instead."""
    return parser.parse_args([] if Path(sys.argv[0]) == Path(__file__).with_name("__main__.py") else None)
