"""confd, the daemon and the command."""
