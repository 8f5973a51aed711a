"""``python -m confd.agent.check_speaker FILE``: whether birdpy would take the file.

Apart from the command itself, since it runs between rendering and swapping on every change: it imports nearly nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from libcalico.model.speaker import decode_speaker_config


def check_speaker(path: Path) -> int:
    """0 if birdpy would take it, else 1 and a line that says why not."""
    try:
        decode_speaker_config(path.read_bytes())
    except (OSError, ValueError) as why:
        sys.stderr.write(f"{path}: {why}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(check_speaker(Path(sys.argv[1])))
