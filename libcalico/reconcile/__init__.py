"""Delta tracking: tables with one writer, indexes, want/saw trackers, outcomes and retries.  Pure."""

from libcalico.reconcile.delta import DeltaTracker
from libcalico.reconcile.outcome import Outcome
from libcalico.reconcile.retry import RetryQueue
from libcalico.reconcile.table import Index, Table, put_or_drop

__all__ = ["DeltaTracker", "Index", "Outcome", "RetryQueue", "Table", "put_or_drop"]
