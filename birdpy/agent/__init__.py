"""birdpy, the daemon: ExaBGP on one side, the kernel on the other, the speaker between."""
