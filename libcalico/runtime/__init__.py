"""What every daemon stands on: logs, settings, supervision, service notification, control socket, health."""
