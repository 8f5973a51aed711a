"""Validation equal to Calico's: what may be stored, what an update may change, what defaults are filled in.

Pure.  Everything that calicoctl (with etcd) refuses is refused, with the field's path, its value and the rule; what
it accepts is accepted.  Where releases differ, the newest sources count; the few places where that would refuse what
Calico's own manual shows say so beside the rule (AS numbers beyond 2147483647, lone addresses in lists of networks).
"""

from libcalico.validation.kinds import VALIDATED_KINDS, validate, with_defaults
from libcalico.validation.problem import FieldProblem
from libcalico.validation.updates import (
    REFERENCES,
    validate_among,
    validate_blocks,
    validate_delete,
    validate_references,
    validate_update,
)

__all__ = [
    "REFERENCES",
    "VALIDATED_KINDS",
    "FieldProblem",
    "validate",
    "validate_among",
    "validate_blocks",
    "validate_delete",
    "validate_references",
    "validate_update",
    "with_defaults",
]
