"""
The ``secure:`` endpoint strings, and what they reach.
"""

import importlib.util
import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from twisted.internet.endpoints import TCP4ClientEndpoint, serverFromString
from twisted.internet.interfaces import (
    IStreamClientEndpoint,
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpoint,
    IStreamServerEndpointStringParser,
)
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions, optionsForClientTLS
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import IPlugin
from zope.interface.verify import verifyObject

from helpers import support
from helpers.support import HOST, client_context, leaf, trust
from txasynchat import CredentialsError
from txasynchat.endpoints import (
    SecureClientEndpoint,
    client_options,
    parse_client,
    parse_server,
    server_options,
)
from txasynchat.tls import ClientCertificate, ClientOptions, Credentials, ServerOptions, Version
from txasynchat.tls.pending import default_limit

ROOT = Path(__file__).parent.parent
PLUGIN = ROOT / "twisted" / "plugins" / "txasynchat_endpoints.py"


@pytest.fixture
def files(tmp_path):
    certificate, key = support.write(tmp_path, leaf())
    authorities = tmp_path / "ca.pem"
    authorities.write_bytes(trust())
    return str(certificate), str(key), str(authorities)


def plugin():
    spec = importlib.util.spec_from_file_location("txasynchat_endpoints", PLUGIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plugin_provides_both_parsers(files):
    certificate, key, authorities = files
    found = plugin()
    for parser, interface in (
        (found.secure_server, IStreamServerEndpointStringParser),
        (found.secure_client, IStreamClientEndpointStringParserWithReactor),
    ):
        assert verifyObject(interface, parser)
        assert IPlugin.providedBy(parser)
        assert parser.prefix == "secure"
    server = found.secure_server.parseStreamServer(
        MemoryReactorClock(), "tcp", "0", certificate=certificate, key=key
    )
    assert verifyObject(IStreamServerEndpoint, server)
    client = found.secure_client.parseStreamClient(
        MemoryReactorClock(), "tcp", HOST, "1", ca=authorities
    )
    assert verifyObject(IStreamClientEndpoint, client)


def test_listing_the_plugin_imports_neither_the_package_nor_a_reactor():
    code = (
        f"import runpy, sys; runpy.run_path({str(PLUGIN)!r}); "
        "print([m for m in sys.modules if m.startswith('txasynchat') or m.endswith('.reactor')])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_unknown_words_go_to_the_inner_string(files):
    certificate, key, _ = files
    reactor = MemoryReactorClock()
    parse_server(
        reactor, "tcp", "8443", interface="127.0.0.1", backlog="7", certificate=certificate, key=key
    ).listen(object())
    ((port, _, backlog, interface),) = reactor.tcpServers
    assert (port, backlog, interface) == (8443, 7, "127.0.0.1")


def test_the_inner_string_may_be_one_argument(files, tmp_path):
    certificate, key, _ = files
    reactor = MemoryReactorClock()
    for inner in (r"tcp:8443:interface=\:\:1", "unix:" + str(tmp_path / "a-socket")):
        parse_server(reactor, inner, certificate=certificate, key=key).listen(object())
    assert reactor.tcpServers[0][3] == "::1"
    assert reactor.unixServers[0][0] == str(tmp_path / "a-socket")


def test_each_word_of_a_server_has_its_effect(files):
    certificate, key, authorities = files
    options = server_options(
        certificate=f"{certificate},{certificate}",
        key=f"{key},{key}",
        client_ca=authorities,
        client="optional",
        alpn="chat/2,chat/1!",
        names="strict",
        version="1.3",
        sessions="yes",
        reload="never",
        handshake_timeout="2.5",
        close_timeout="1",
        max_handshakes="7",
        max_pending="70",
    )
    assert len(options.credentials) == 2
    assert options.client_certificate is ClientCertificate.OPTIONAL
    assert options.client_authorities == authorities
    assert options.alpn == (b"chat/2", b"chat/1")
    assert options.require_alpn
    assert options.strict_names
    assert (options.minimum, options.maximum) == (Version.TLS_1_3, Version.TLS_1_3)
    assert options.sessions
    assert options.reload_interval is None
    assert (options.handshake_timeout, options.close_timeout) == (2.5, 1.0)
    assert (options.handshakes, options.max_pending) == (7, 70)


def test_server_string_without_words_has_the_defaults(files):
    certificate, key, authorities = files
    options = server_options(certificate=certificate, key=key)
    assert options.client_certificate is ClientCertificate.OFF
    assert (options.minimum, options.maximum) == (Version.TLS_1_2, Version.TLS_1_3)
    assert (options.handshake_timeout, options.close_timeout, options.limit.count) == (
        10,
        3,
        128,
    )
    assert options.max_pending == default_limit()
    assert not (options.sessions or options.strict_names or options.require_alpn or options.alpn)
    required = server_options(certificate=certificate, key=key, client_ca=authorities)
    assert required.client_certificate is ClientCertificate.REQUIRED


def test_each_word_of_a_client_has_its_effect(files):
    certificate, key, authorities = files
    options = client_options(
        hostname=HOST,
        ca=authorities,
        certificate=certificate,
        key=key,
        alpn="chat/1",
        version="1.2",
        handshake_timeout="2",
        close_timeout="1",
    )
    assert options.hostname == HOST
    assert options.authorities == authorities
    assert options.credentials.files == (certificate, key)
    assert options.alpn == (b"chat/1",)
    assert (options.minimum, options.maximum) == (Version.TLS_1_2, Version.TLS_1_2)
    assert (options.handshake_timeout, options.close_timeout) == (2.0, 1.0)


def test_client_host_name_defaults_to_the_host_it_connects_to(files):
    *_, authorities = files
    reactor = MemoryReactorClock()
    assert parse_client(reactor, "tcp", HOST, "1", ca=authorities).options.hostname == HOST
    assert parse_client(reactor, f"tcp:{HOST}:1").options.hostname == HOST
    assert parse_client(reactor, r"tcp:\:\:1:1").options.hostname == "::1"
    named = parse_client(reactor, "unix", "/a/socket", hostname="other.example.org")
    assert named.options.hostname == "other.example.org"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"certificate": ""}, "needs certificate="),
        ({"client": "maybe"}, "client must be off or optional or required, not 'maybe'"),
        ({"version": "1.1"}, "version must be 1.2 or 1.3, not '1.1'"),
        ({"sessions": "1"}, "sessions must be no or yes, not '1'"),
        (
            {"handshake_timeout": "soon"},
            "handshake_timeout must be a number above 0 to 1,000,000, not 'soon'",
        ),
        (
            {"handshakes": "1", "max_handshakes": "1"},
            "handshakes= and max_handshakes= are the same; give one of them",
        ),
        ({"handshakes": "0"}, "handshakes must be a whole number from 1 up, not '0'"),
        ({"max_handshakes": "0"}, "max_handshakes must be a whole number from 1 up, not '0'"),
        ({"max_pending": "0"}, "max_pending must be a whole number from 1 up, not '0'"),
        ({"key": "one,two"}, "certificate= names 1 files, key= 2"),
        ({"client_ca": "missing.pem"}, "missing.pem: No such file or directory"),
        ({"certificate": "missing.pem"}, "missing.pem: No such file or directory"),
    ],
)
def test_a_wrong_word_is_named(files, words, complaint):
    certificate, key, _ = files
    given = {"certificate": certificate, "key": key} | words
    with pytest.raises(ValueError) as raised:
        parse_server(MemoryReactorClock(), "tcp", "0", **{k: v for k, v in given.items() if v})
    assert complaint in str(raised.value)


def test_client_endpoint_refuses_options_that_verify_no_name(files):
    *_, authorities = files
    inner = TCP4ClientEndpoint(MemoryReactorClock(), HOST, 1)
    for options in (ClientOptions(HOST, authorities), optionsForClientTLS(HOST)):
        SecureClientEndpoint(MemoryReactorClock(), inner, options)
    server = ServerOptions(Credentials(files[0], files[1]))
    for wrong in (CertificateOptions(), server, ssl.create_default_context(), None):
        with pytest.raises(TypeError, match=r"must be ClientOptions\(hostname\)"):
            SecureClientEndpoint(MemoryReactorClock(), inner, wrong)


@pytest.mark.parametrize("words", [{"hostname": ""}, {"hostname": "."}, {"hostname": "*"}])
def test_client_string_without_a_host_name_is_refused(files, words):
    with pytest.raises(ValueError, match=r"hostname must be|not a host name"):
        parse_client(MemoryReactorClock(), "tcp", HOST, "1", ca=files[2], **words)


def test_missing_inner_string_is_an_error(files):
    certificate, key, _ = files
    with pytest.raises(ValueError, match="needs another endpoint"):
        parse_server(MemoryReactorClock(), certificate=certificate, key=key)
    with pytest.raises(ValueError, match="needs hostname="):
        parse_client(MemoryReactorClock(), "unix", "/a/socket")


def test_relative_files_are_found_after_a_change_of_folder(tmp_path, monkeypatch):
    support.write(tmp_path, leaf())
    monkeypatch.chdir(tmp_path)
    options = server_options(certificate="server.pem", key="server.key", reload="0.001")
    monkeypatch.chdir("/")
    (tmp_path / "server.key").unlink()
    (watched,) = options._contexts._watched
    watched.now = lambda: float("inf")
    assert not watched.renewed()
    support.write(tmp_path, support.authority().issue_cert(HOST))
    assert watched.renewed()


def test_credentials_error_is_a_value_error():
    assert issubclass(CredentialsError, ValueError)
    assert Clock().seconds() == 0


# -- the whole way, through twistd


TWISTD = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"


@contextmanager
def twistd(folder, *arguments):
    """Run ``twistd -n asynchat``; yields the process, and the lines that it has said so far."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-c", TWISTD, "-n", "--pidfile=", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        limit = threading.Timer(60, process.kill)
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            limit.join()
            process.terminate()
            process.stdout.close()


@pytest.mark.parametrize(
    "inner", [r"tcp\:8443\:interface=127.0.0.1", r"tcp\:8443\:interface\=127.0.0.1", r"tcp\:8443"]
)
def test_an_inner_string_may_be_written_as_one_argument(files, inner):
    certificate, key, _ = files
    reactor = MemoryReactorClock()
    text = rf"secure:{inner}:certificate={certificate}:key={key}"
    serverFromString(reactor, text).listen(Factory())
    ((port, _, _, interface),) = reactor.tcpServers
    assert port == 8443
    assert interface == ("127.0.0.1" if "interface" in inner else "")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"client": "optional"}, "client=optional needs client_ca="),
        ({"alpn": "tch\xfcss"}, "alpn= must be in ASCII"),
        ({"alpn": "!"}, "would refuse every client"),
        ({"alpn": "chat/1,,chat/2"}, "an ALPN protocol must be bytes, 1 to 255"),
    ],
)
def test_contradictory_words_are_refused(files, words, complaint):
    certificate, key, _ = files
    with pytest.raises(ValueError, match=complaint):
        server_options(certificate=certificate, key=key, **words)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_twistd_serves_every_kind_of_string(files, tmp_path):
    certificate, key, authorities = files
    port = free_port()
    listen = (
        f"secure:tcp:{port}:interface=127.0.0.1:certificate={certificate}:key={key}"
        f":client_ca={authorities}:alpn=chat/1!"
    )
    path = tmp_path / "a-socket"
    over_unix = f"secure:unix:{path}:certificate={certificate}:key={key}"
    with twistd(tmp_path, "asynchat", "--listen", listen, "--listen", over_unix) as process:
        said = []
        while not path.exists() or not any(str(path) in line for line in said):
            line = process.stdout.readline()
            assert line, "".join(said)
            said.append(line)
        context = client_context()
        context.set_alpn_protocols(["chat/1"])
        pair = tmp_path / "client.pem"
        pair.write_bytes(support.pem(support.authority().issue_cert("someone@example.org")))
        context.load_cert_chain(pair)
        assert support.talk(port, context) == b"hello\n"
        assert support.talk(str(path), client_context()) == b"hello\n"


@pytest.mark.parametrize(
    ("listen", "complaint"),
    [
        ("secure:tcp:0", "needs certificate="),
        ("secure:tcp:0:certificate=missing.pem", "missing.pem: No such file or directory"),
        ("secure:tcp:0:certificate={certificate}", "server.pem: has no private key in PEM"),
        ("secure:tcp:0:certificate={certificate}:key={key}:colour=red", "colour"),
        ("secure:nonsense:certificate={certificate}:key={key}", "nonsense"),
        (
            "secure:tcp:0:certificate={certificate}:key={key}:client=required",
            "client=required needs client_ca=",
        ),
    ],
)
@pytest.mark.slow
def test_twistd_reports_a_wrong_string_in_one_line(files, tmp_path, listen, complaint):
    certificate, key, _ = files
    listen = listen.format(certificate=certificate, key=key)
    with twistd(tmp_path, "asynchat", "--listen", listen) as process:
        said = process.stdout.read()
        assert process.wait(60) == 1
    assert complaint in said
    assert "Traceback" not in said
