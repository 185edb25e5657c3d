"""
The programs in ``examples/`` that are no pairs, run as a reader would run them; the pairs' tests are in
``tests/examples``.
"""

import doctest
import importlib.util
import os
import re
import shutil
import smtplib
import socket
import ssl
import sys
from pathlib import Path

import pytest
import trustme


def connect(port):
    return socket.create_connection(("127.0.0.1", int(port)), timeout=10)


@pytest.fixture
def serve(root, start, tmp_path):
    """Serve a handler of an example by ``twistd``, and return the port."""

    def serve_handler(handler):
        shutil.copy(root / "examples" / f"{handler.partition(':')[0]}.py", tmp_path)
        twistd = str(Path(sys.executable).with_name("twistd"))
        options = ["--handler", handler, "--listen", "tcp:0:interface=127.0.0.1"]
        return start([twistd, "-n", "asynchat", *options], r"on 127\.0\.0\.1:(\d+)")[1]

    return serve_handler


def test_session_in_the_tutorial_works(root, serve):
    tutorial = (root / "docs/tutorial/first-server.md").read_text()
    [session] = re.findall(r"^```pycon\n(.*?)^```$", tutorial, re.MULTILINE | re.DOTALL)
    typed = session.replace("8007", serve("counter:Counter"))
    example = doctest.DocTestParser().get_doctest(typed, {}, "tutorial", None, 0)
    report = []
    result = doctest.DocTestRunner().run(example, out=report.append, clear_globs=False)
    for opened in "lines", "peer":
        example.globs[opened].close()
    assert result.attempted > 3
    assert result.failed == 0, "".join(report)


def test_counter_shares_one_number(serve):
    port = serve("counter:TalkingCounter")
    with connect(port) as first, first.makefile("rb") as answers:
        first.sendall(b"add 3\nadd x\nnothing\n")
        assert answers.readline() == b"ok\n"
        assert answers.readline() == b"error: add what?\n"
        assert answers.readline() == b"error: add NUMBER, total or quit\n"
        with connect(port) as second:
            second.sendall(b"add 4\ntotal\nquit\n")
            with second.makefile("rb") as others_answers:
                assert others_answers.read() == b"ok\n7\nbye\n"
        assert answers.readline() == b"somebody added 4\n"


def test_files_sends_a_whole_file_before_later_answers(root, start, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    content = os.urandom(5_000_000)
    (folder / "large").write_bytes(content)
    (folder / "small").write_bytes(b"tiny")
    (tmp_path / "secret").write_bytes(b"not for you")
    command = [sys.executable, str(root / "examples/files.py"), str(folder)]
    port = start([*command, "tcp:0:interface=127.0.0.1"], r"on 127\.0\.0\.1:(\d+)")[1]
    with connect(port) as peer, peer.makefile("rb") as answers:
        peer.sendall(b"large\nsmall\n\n../secret\n\r\nnone\r\n")
        assert answers.readline() == b"5000000 bytes\n"
        assert answers.read(len(content)) == content
        assert answers.readline() == b"4 bytes\n"
        assert answers.read(4) == b"tiny"
        assert [answers.readline() for _ in range(2)] == [b"large\n", b"small\n"]
        assert answers.readline() == b"no such file\n"
        assert [answers.readline() for _ in range(2)] == [b"large\r\n", b"small\r\n"]
        assert answers.readline() == b"no such file\r\n"


@pytest.mark.skipif(
    importlib.util.find_spec("smtpd") is None,
    reason="smtpd left Python with 3.12, and no package brings it back here",
)
@pytest.mark.parametrize("secure", [False, True], ids=["in the clear", "over TLS"])
def test_mail_is_received_by_smtpds_channel(root, start, tmp_path, secure):
    shutil.copy(root / "examples" / "mail.py", tmp_path)
    authority = trustme.CA()
    pem = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    listen = "tcp:0:interface=127.0.0.1"
    if secure:
        listen = f"secure:{listen}:certificate=server.pem"
    twistd = [sys.executable, "-W", "ignore", str(Path(sys.executable).with_name("twistd"))]
    command = [*twistd, "-n", "asynchat", "--handler", "mail:factory", "--listen", listen]
    port = int(start(command, r"on 127\.0\.0\.1:(\d+)")[1])
    context = ssl.create_default_context()
    authority.configure_trust(context)
    connection = (
        smtplib.SMTP_SSL("127.0.0.1", port, timeout=20, context=context)
        if secure
        else smtplib.SMTP("127.0.0.1", port, timeout=20)
    )
    with connection as client:
        for size in (10, 100_000):
            text = "Subject: hello\r\n\r\n" + "x" * 70 * (size // 70) + "\r\n"
            refused = client.sendmail("me@example.org", ["you@example.org"], text)
            assert refused == {}
        assert client.docmd("EXPN", "everybody")[0] == 502


def test_tls_echo_speaks_tls_at_once_and_on_request(root, start, tmp_path):
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    leaf.cert_chain_pems[0].write_to_path(certificate)
    leaf.private_key_pem.write_to_path(key)
    context = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    secure = f"secure:tcp:0:interface=127.0.0.1:certificate={certificate}:key={key}"
    for endpoint in (secure, "tcp:0:interface=127.0.0.1"):
        example = [str(root / "examples/tls_echo.py"), str(certificate), str(key), endpoint]
        port = start([sys.executable, *example], r"on (?:TLS )?127\.0\.0\.1:(\d+)")[1]
        with connect(port) as peer:
            if endpoint != secure:
                peer.sendall(b"STARTTLS\n")
                assert peer.recv(100) == b"go ahead\n"
            with context.wrap_socket(peer, server_hostname="localhost") as tls:
                for line in (b"hello\n", b"hello\r\n"):
                    tls.sendall(line)
                    assert tls.recv(100) == line
