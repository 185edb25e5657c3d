"""
The programs in ``examples/``, run as a reader would run them.
"""

import socket
import sys


def connect(port):
    return socket.create_connection(("127.0.0.1", int(port)), timeout=10)


def test_the_ported_chat_passes_lines_on_to_the_others(root, start):
    example = str(root / "examples/ported_asynchat.py")
    port = start([sys.executable, example, "0"], r"port (\d+)")[1]
    with connect(port) as first, connect(port) as second, second.makefile("rb") as heard:
        # Whoever is answered has been accepted; the second came after the first.
        second.sendall(b"is anybody here?\n")
        with first.makefile("rb") as answers:
            assert answers.readline() == b"is anybody here?\r\n"
        first.sendall(b"yes\nindeed\n")
        assert [heard.readline(), heard.readline()] == [b"yes\r\n", b"indeed\r\n"]
