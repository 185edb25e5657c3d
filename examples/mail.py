"""
A mail sink on any endpoint: the ``SMTPChannel`` of the standard library's smtpd, as it is.

    twistd -n asynchat --handler mail:factory --listen tcp:8025:interface=127.0.0.1

Python 3.12 and later have no smtpd; ``pip install standard-smtpd`` brings it back.
"""

import txasynchat

txasynchat.install()  # first: smtpd imports asyncore and asynchat

from smtpd import SMTPChannel  # noqa: E402 - see above

from txasynchat.compat import LegacyFactory  # noqa: E402 - see above


class Mailbox:
    """What a channel asks of the ``SMTPServer`` that it belongs to."""

    def process_message(
        self, _peer: object, sender: str, recipients: list[str], data: bytes, **_options: object
    ) -> str | None:
        print(f"{sender} to {', '.join(recipients)}: {len(data)} bytes", flush=True)
        return None  # or a reply other than "250 OK"


mailbox = Mailbox()
factory = LegacyFactory(build=lambda sock, addr: SMTPChannel(mailbox, sock, addr))
