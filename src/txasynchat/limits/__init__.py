"""
What a peer may take of a server: time, bytes, connections.

`Limits` says how much; `txasynchat.limits.file` reads it from a file.
"""

from typing import TYPE_CHECKING

from txasynchat._lazy import on_first_use

if TYPE_CHECKING:  # ``X as X``: for type checkers, X is public
    from txasynchat.limits.admission import Admission as Admission
    from txasynchat.limits.file import read_limits as read_limits
    from txasynchat.limits.options import UNSET as UNSET
    from txasynchat.limits.options import Limits as Limits

_NAMES = {"admission": "Admission", "file": "read_limits", "options": "Limits UNSET"}
__all__ = [name for names in _NAMES.values() for name in names.split()]
__getattr__, __dir__ = on_first_use(__name__, _NAMES)
