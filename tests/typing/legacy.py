"""
The facade as typed programs use it. Checked by mypy, never run.
"""

from typing import assert_type

from twisted.internet.protocol import ServerFactory

import txasynchat
from txasynchat.compat import Attachment, LegacyFactory, asynchat, asyncore, attach


class Handler(asynchat.async_chat):
    def found_terminator(self) -> None:
        self.push(b"answer")


def everything() -> ServerFactory:
    txasynchat.install()
    asyncore.loop(timeout=1.0, count=1)
    attachment = attach()
    assert_type(attachment, Attachment)
    attachment.detach()
    return LegacyFactory(Handler)
