"""
A line-echo server that speaks TLS from the beginning on one port, and on request on another.

    python tls_echo.py server.pem server.key

Talk to it: ``openssl s_client -quiet -connect 127.0.0.1:8443``; and in the clear, where the line
``STARTTLS`` starts TLS: ``nc 127.0.0.1 8007``. Further arguments are endpoints instead of those two.
"""

import sys

from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, Credentials, ServerOptions, TLSInfo, serve


class Echo(AsyncChat):
    terminator = (b"\n", b"\r\n")
    options: ServerOptions

    @override
    def handle_secure(self, info: TLSInfo) -> None:
        # Discard here what was received before; this handler keeps nothing.
        print(f"{self.addr}: {info.version}, {info.cipher}", flush=True)

    @override
    def message_received(self, message: bytes) -> None:
        if message == b"STARTTLS" and self.tls is None:
            self.push_line(b"go ahead")
            self.start_tls(self.options)
        else:
            self.push(message + self.matched_terminator)


def main(certificate: str, key: str, *endpoints: str) -> None:
    Echo.options = ServerOptions(Credentials(certificate, key))
    words = f"interface=127.0.0.1:certificate={certificate}:key={key}"
    serve(
        ChatFactory(Echo),
        *(endpoints or [f"secure:tcp:8443:{words}", "tcp:8007:interface=127.0.0.1"]),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
