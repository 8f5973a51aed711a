"""What several parts of felixctl must agree on and none can import from another without its weight."""

from __future__ import annotations

CONFIG_FILE = "/etc/calico/calicoctl.cfg"  # calicoctl's own; need not be there
