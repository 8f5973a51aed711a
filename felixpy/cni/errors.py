"""CNI's errors: a code and two texts, printed as JSON.  Codes: CNI specification 1.1.0, section "Error"."""

from __future__ import annotations

import json

BAD_VERSION, BAD_FIELD, NO_CONTAINER, BAD_ENVIRONMENT, BAD_IO, BAD_JSON, BAD_CONFIG, TRY_AGAIN = 1, 2, 3, 4, 5, 6, 7, 11
UNAVAILABLE = 50  # of STATUS: no ADD can succeed
FAILED = 100  # the first code that is a plugin's own


class CniError(Exception):
    """A command has failed; ``code`` is one of the above."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(f"{message}: {details}" if details else message)
        self.code, self.message, self.details = code, message, details

    def text(self, version: str = "1.0.0") -> str:
        """What is printed."""
        value = {"cniVersion": version, "code": self.code, "msg": self.message}
        if self.details:
            value["details"] = self.details
        return json.dumps(value) + "\n"
