"""The helper process that ExaBGP starts: hands its standard input and output over to birdpy, and waits.

Run by ExaBGP as ``python -I relay.py SOCKET``.  The two file descriptors go over a unix socket (SCM_RIGHTS), so birdpy
reads ExaBGP's events from the very pipe that ExaBGP writes, and nothing is copied.  When birdpy goes, so does this.
With them goes ExaBGP's process id: should this process die, ExaBGP would start another and go on with a birdpy that has
missed what was said meanwhile, so birdpy must know whom to end.
"""

import os
import socket
import sys


def main(path: str) -> int:
    """Hand over and wait; returns when birdpy closes the socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as birdpy:
        try:
            birdpy.connect(path)
            socket.send_fds(birdpy, [str(os.getppid()).encode()], [0, 1])
            birdpy.recv(1)
        except OSError as why:
            sys.stderr.write(f"birdpy relay: {path}: {why}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
