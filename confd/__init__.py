"""confd: watch a datastore, render templates, check, swap, reload."""
