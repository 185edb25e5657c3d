"""
Renewal of certificates whose files change at any moment, and are unusable at others.
"""

import contextlib
import os
import resource
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from twisted.logger import LogLevel, globalLogPublisher

from helpers import support
from helpers.support import HOST, client_context, pem
from txasynchat.errors import CredentialsError
from txasynchat.tls import ClientCertificate, Credentials, ServerOptions
from txasynchat.tls.certificates import Watched

NOBODY = 65_534


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Served:
    """Options that check their files in each handshake, and what they log."""

    def __init__(self, credentials, **arguments):
        self.options = ServerOptions(credentials, reload_interval=1e-9, **arguments)
        self.kept = []
        self.taken_up = []

    def note(self, event):
        if event["log_namespace"] != "txasynchat.tls.certificates.Watched":
            return
        if event["log_level"] is LogLevel.warn:
            self.kept.append(event["error"])
        else:
            self.taken_up.append(event["source"])

    def shake(self, name=HOST, context=None):
        """Return the serial number of the certificate that a client gets, or None if refused."""
        context = client_context() if context is None else context
        context.check_hostname = False
        server = self.options.engine()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(incoming, outgoing, server_hostname=name)
        while not server.is_secure:
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            if (sent := outgoing.read()) and server.feed(sent):
                server.shake_hands()
            if server.ended:
                return None
            incoming.write(server.take())
        client.do_handshake()
        return int(client.getpeercert()["serialNumber"], 16)


@pytest.fixture
def serve():
    def start(*arguments, **more):
        served = Served(*arguments, **more)
        globalLogPublisher.addObserver(served.note)
        started.append(served)
        return served

    started = []
    yield start
    for served in started:
        globalLogPublisher.removeObserver(served.note)


def issue(*names, **more):
    return support.authority().issue_cert(*(names or (HOST,)), **more)


def serial(certificate):
    return x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes()).serial_number


def chain(certificate):
    return b"".join(one.bytes() for one in certificate.cert_chain_pems)


def key(certificate):
    return certificate.private_key_pem.bytes()


# -- faults of a file; each function returns another one that repairs it


def is_a_folder(path, content):
    path.unlink()
    path.mkdir()

    def mend():
        path.rmdir()
        path.write_bytes(content)

    return mend


def is_missing(path, content):
    path.unlink()
    return lambda: path.write_bytes(content)


def is_half_written(path, content):
    path.write_bytes(content[: len(content) // 2])
    return lambda: path.write_bytes(content)


def is_empty(path, content):
    path.write_bytes(b"")
    return lambda: path.write_bytes(content)


def cannot_be_opened(path, content):
    """Let the process reach its limit of open descriptors."""
    path.write_bytes(content)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, before)


def may_not_be_read(path, content):
    path.write_bytes(content)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        try:
            os.seteuid(NOBODY)
        except OSError:
            pytest.skip("root reads any file, and may not become somebody else here")

    def mend():
        os.seteuid(user)
        path.chmod(0o600)

    return mend


def has_a_link_to_nothing(path, content):
    target = path.with_suffix(".target")
    path.unlink()
    path.symlink_to(target)
    return lambda: target.write_bytes(content)


FAULTS = [
    is_a_folder,
    is_missing,
    is_half_written,
    is_empty,
    cannot_be_opened,
    may_not_be_read,
    has_a_link_to_nothing,
]


@pytest.fixture(autouse=True)
def limits_and_user_are_restored():
    before, user = resource.getrlimit(resource.RLIMIT_NOFILE), os.geteuid()
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    if os.geteuid() != user:
        os.seteuid(user)


@pytest.fixture
def folder():
    """Make a folder that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


# -- renewal


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("late", ["certificate", "key"])
def test_renewed_pair_is_used_as_soon_as_its_last_file_is_good(folder, serve, late, fault):
    old, new = issue(), issue()
    files = dict(zip(["certificate", "key"], support.write(folder, old), strict=True))
    contents = {"certificate": chain(new), "key": key(new)}
    served = serve(Credentials(**files))
    for name, file in files.items():
        if name != late:
            file.write_bytes(contents[name])
    mend = fault(files[late], contents[late])
    for _ in range(3):
        assert served.shake() == serial(old)
    assert len(served.kept) == 1
    assert served.taken_up == []
    mend()
    assert served.shake() == serial(new)
    assert served.taken_up == [str(files["certificate"])]
    assert len(served.kept) == 1
    for _ in range(3):
        assert served.shake() == serial(new)
    assert len(served.taken_up) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_renewed_file_with_certificate_and_key_is_used_as_soon_as_it_is_good(folder, serve, fault):
    old, new = issue(), issue()
    file = folder / "both.pem"
    file.write_bytes(pem(old))
    served = serve(Credentials(file))
    mend = fault(file, pem(new))
    assert [served.shake(), served.shake()] == [serial(old)] * 2
    assert len(served.kept) == 1
    mend()
    assert served.shake() == serial(new)


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_pair_does_not_delay_the_others(folder, serve, fault):
    names = ["first.example.org", "second.example.org"]
    old, new = [issue(name) for name in names], [issue(name) for name in names]
    files = [folder / f"{name}.pem" for name in names]
    for file, certificate in zip(files, old, strict=True):
        file.write_bytes(pem(certificate))
    served = serve([Credentials(file) for file in files])
    files[1].write_bytes(pem(new[1]))
    mend = fault(files[0], pem(new[0]))
    if fault is not cannot_be_opened:
        assert [served.shake(name) for name in names] == [serial(old[0]), serial(new[1])]
    else:
        assert [served.shake(name) for name in names] == [serial(one) for one in old]
    mend()
    assert [served.shake(name) for name in names] == [serial(one) for one in new]


@pytest.mark.parametrize("fault", FAULTS)
def test_renewed_authorities_of_clients_are_used_as_soon_as_they_are_good(folder, serve, fault):
    old, new = trustme.CA(), trustme.CA()
    file = folder / "authorities.pem"
    file.write_bytes(old.cert_pem.bytes())
    served = serve(
        support.credentials(),
        client_certificate=ClientCertificate.REQUIRED,
        client_authorities=file,
    )
    contexts = []
    for number, authority in enumerate((old, new)):
        pair = folder / f"client{number}.pem"
        pair.write_bytes(pem(authority.issue_cert("someone@example.org")))
        contexts.append(client_context("1.2"))
        contexts[-1].load_cert_chain(pair)

    def accepted():
        return [served.shake(context=context) is not None for context in contexts]

    assert accepted() == [True, False]
    mend = fault(file, new.cert_pem.bytes())
    assert accepted() == [True, False]
    assert len(served.kept) == 1
    mend()
    assert accepted() == [False, True]
    assert served.taken_up == [str(file)]


def test_certificate_that_is_not_valid_yet_is_used_once_it_is(folder, serve, monkeypatch):
    old = issue()
    new = issue(not_after=datetime.now(UTC) + timedelta(days=3000))
    files = support.write(folder, old)
    served = serve(Credentials(*files))
    support.write(folder, new)
    begins = x509.load_pem_x509_certificate(chain(new)).not_valid_before_utc

    class Early(datetime):
        @classmethod
        def now(cls, tz=None):
            return begins - timedelta(seconds=1)

    with monkeypatch.context() as patch:
        patch.setattr("txasynchat.tls.certificates.datetime", Early)
        assert served.shake() == serial(old)
    assert "not valid before" in served.kept[0]
    assert served.shake() == serial(new)


def test_pair_that_openssl_refuses_is_not_used(folder, serve):
    """Its key is too small."""
    old, new = issue(), issue()
    file = folder / "both.pem"
    file.write_bytes(pem(old))
    served = serve(Credentials(file))
    small = rsa.generate_private_key(65537, 1024)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(small.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(small, SHA256())
    )
    file.write_bytes(
        certificate.public_bytes(Encoding.PEM)
        + small.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    assert [served.shake(), served.shake()] == [serial(old)] * 2
    (complaint,) = served.kept
    assert "OpenSSL says" in complaint
    file.write_bytes(pem(new))
    assert served.shake() == serial(new)


# -- the log


def test_each_reason_is_logged_once_an_hour(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"1")
    clock = Clock()
    reasons = []

    def make():
        if reasons:
            raise CredentialsError("file", reasons[0])
        return file.read_bytes()

    logged = []

    def note(event):
        logged.append(event.get("error") or event["source"])

    watched = Watched("the thing", [str(file)], make, interval=1.0, now=clock)
    globalLogPublisher.addObserver(note)
    try:
        file.write_bytes(b"22")
        for reason, seconds in (("one", 10), ("two", 10), ("one", 10), ("one", 3600)):
            reasons[:] = [reason]
            for _ in range(seconds):
                clock.now += 1.0
                assert not watched.renewed()
        assert watched.loaded == b"1"
        assert logged == ["file: one", "file: two", "file: one"]
        logged.clear()
        reasons.clear()
        clock.now += 1.0
        assert watched.renewed()
        assert (watched.loaded, logged) == (b"22", [str(file)])
        # After a success the same reason is logged again.
        file.write_bytes(b"333")
        reasons[:] = ["one"]
        clock.now += 1.0
        assert not watched.renewed()
        assert logged == [str(file), "file: one"]
    finally:
        globalLogPublisher.removeObserver(note)


def test_failed_files_are_retried_at_the_interval(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"1")
    clock = Clock()
    made = []

    def make():
        made.append(clock.now)
        if len(made) > 1:
            raise CredentialsError("file", "is wrong")

    watched = Watched("the thing", [str(file)], make, interval=1.0, now=clock)
    file.write_bytes(b"22")
    for _ in range(40):
        clock.now += 0.25
        watched.renewed()
    assert made == [0.0, *map(float, range(1, 11))]
