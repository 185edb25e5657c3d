"""
Which names a certificate is for: as OpenSSL finds, and as the service-identity package does.
"""

import datetime as dt
import ipaddress
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import extract_patterns
from service_identity.hazmat import DNS_ID, IPAddress_ID, verify_service_identity

from helpers import support
from helpers.engines import Link
from helpers.support import server_options, trust
from txasynchat.tls import ClientOptions, Credentials

CERTIFICATES = [
    ("*.example.org",),
    ("a.example.org",),
    ("EXAMPLE.org",),
    ("example.org.",),
    (".example.org",),
    ("*.org",),
    ("*",),
    ("a*.example.org",),
    ("*a.example.org",),
    ("www.*.org",),
    ("*.*.example.org",),
    ("xn--bcher-kva.example",),
    ("*.xn--bcher-kva.example",),
    ("a_b.example.org",),
    ("good.example.org", "*.*"),
    ("*.example.org", "a.b"),
    ("localhost",),
    ("*.localhost",),
    ("127.0.0.1",),
    ("::1", "localhost"),
]
HOSTS = [
    *("a.example.org", "A.EXAMPLE.ORG", "aa.example.org", "a.b.example.org", "example.org"),
    *("a.example.org.", "good.example.org", "a_b.example.org", "b.org", "www.a.org"),
    *("xn--bcher-kva.example", "x.xn--bcher-kva.example", "xn--a.example.org"),
    *("localhost", "x.localhost", "127.0.0.1", "127.0.0.2", "::1", "0:0:0:0:0:0:0:1"),
]
#: Where they differ: RFC 9525 allows the first, host names have no underscores, and a malformed name
#: in a certificate spoils the others for one of them only.
DIFFERENT = {
    (("*.example.org",), "xn--a.example.org"): True,
    (("*.example.org", "a.b"), "xn--a.example.org"): True,
    (("*.example.org",), "a_b.example.org"): False,
    (("*.example.org", "a.b"), "a_b.example.org"): False,
    (("good.example.org", "*.*"), "good.example.org"): True,
}


def general_name(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def issue(names):
    """A certificate of the authority, with names that no authority would put into one."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    subject = [x509.NameAttribute(support.NameOID.COMMON_NAME, "common.example.org")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.load_pem_x509_certificate(trust()).subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([general_name(one) for one in names]), critical=False
        )
        .sign(
            load_pem_private_key(support.authority().private_key_pem.bytes(), None),
            hashes.SHA256(),
        )
    )
    return certificate, key


def accepts(certificate, host):
    """What service-identity thinks."""
    try:
        wanted = IPAddress_ID(host)
    except ValueError:
        wanted = DNS_ID(host)
    try:
        verify_service_identity(extract_patterns(certificate), [wanted], [])
    except (VerificationError, CertificateError):
        return False
    return True


@cache
def client(host):
    return ClientOptions(host, trust())


@pytest.mark.parametrize("names", CERTIFICATES, ids=" ".join)
def test_a_certificate_is_for_the_same_names_as_service_identity_finds(names):
    certificate, key = issue(names)
    server = server_options(credentials=Credentials([certificate], key))
    for host in HOSTS:
        made = Link(client(host).engine(), server.engine()).run()
        expected = DIFFERENT.get((names, host), accepts(certificate, host))
        assert made.client.is_secure == expected, host
