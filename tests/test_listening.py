"""
Why a server cannot listen, in one sentence: what happened, the value, what to write instead.
"""

import os
import socket

import pytest
from twisted.internet import reactor

from txasynchat import AsyncChat, ChatFactory, ListenError, Program, Server

LOCAL = "tcp:4000:interface=127.0.0.1"

# Descriptions that are refused, and how the sentence ends.
NO_ENDPOINTS = {
    "4000": "Unknown endpoint type: '4000'; write tcp:4000:interface=127.0.0.1 for this machine only, "
    "or tcp:4000 for all addresses",
    "localhost:4000": f"Unknown endpoint type: 'localhost'; write {LOCAL}",
    ":4000": f"Unknown endpoint type: ''; write {LOCAL}",
    "10.0.0.1:80": "Unknown endpoint type: '10.0.0.1'; write tcp:80:interface=10.0.0.1",
    "[::1]:80": r"Unknown endpoint type: '['; write tcp6:80:interface=\:\:1",
    "/run/chat.sock": "Unknown endpoint type: '/run/chat.sock'; write unix:/run/chat.sock",
    "pigeon:1": "Unknown endpoint type: 'pigeon'; write one of tcp:, tcp6:, unix:, ssl:, systemd:, "
    f"or secure: before one of them, as in {LOCAL}",
    "secure:4000:certificate=none.pem": "Unknown endpoint type: '4000'; write "
    "secure:tcp:4000:interface=127.0.0.1:certificate=cert.pem for this machine only, "
    "or secure:tcp:4000:certificate=cert.pem for all addresses",
    "haproxy:4000": "Unknown endpoint type: '4000'; write haproxy:tcp:4000:interface=127.0.0.1 for "
    "this machine only, or haproxy:tcp:4000 for all addresses",
    "tcp": f"missing 1 required positional argument: 'port'; write {LOCAL}",
    "tcp:4000x": f"'4000x' is not a number; write {LOCAL}",
    "tcp:1:backlog=many": f"'many' is not a number; write {LOCAL}",
    "tcp:1:colour=red": f"got an unexpected keyword argument 'colour'; write {LOCAL}",
    "tcp6:0:interface=::1": "got multiple values for argument 'interface' (a colon inside one is "
    r"written \:); write tcp6:4000:interface=\:\:1",
    "tcp:0\\": "the backslash at the end escapes nothing",
    "unix:chat.sock:mode=rw": "'rw' is not an octal number, as in mode=660; write "
    "unix:chat.sock:mode=660",
    "systemd": "missing 1 required positional argument: 'domain'; write systemd:domain=INET:index=0",
    "systemd:domain=INET": "Specify exactly one of descriptor index or name; write "
    "systemd:domain=INET:index=0",
    "systemd:domain=INET:index=0": "systemd passed no such socket; start the .socket unit, "
    "and count index from 0 or give its name",
    "secure:tcp:http:certificate=none.pem": "'http' is not a number; write "
    "secure:tcp:4000:interface=127.0.0.1:certificate=cert.pem",
    "ssl:0:privateKey=none.pem": "No such file or directory: '{folder}/none.pem'",
}

# Descriptions that fail when the server listens, and how the sentence ends.
NO_PLACES = {
    "tcp:70000": "a port must be a number from 0 to 65535",
    "tcp:0:interface=192.0.2.1": "Cannot assign requested address; give interface= an address of "
    "this machine, or leave it out",
    "unix:": "the path is empty; write unix:chat.sock:mode=660",
    "unix:none/chat.sock": "there is no folder 'none'; make it, or name another one",
    "unix:folder": "Address already in use: 'folder' exists; it is not a socket",
    "unix:other.sock": "Address already in use: 'other.sock' exists; remove it if no program listens "
    "there",
    f"unix:{'long' * 40}": "AF_UNIX path too long",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind("other.sock")
    return tmp_path


@pytest.mark.parametrize("description", NO_ENDPOINTS)
def test_invalid_endpoint_is_reported_with_what_to_write(folder, description):
    """Common typing mistakes."""
    with pytest.raises(ListenError) as caught:
        Server(reactor, ChatFactory(AsyncChat), [description])
    problem = NO_ENDPOINTS[description].format(folder=folder)
    assert str(caught.value) == f"cannot listen on {description!r}: {problem}"


# Older versions of Twisted leave a socket that could not be bound to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
@pytest.mark.parametrize("description", NO_PLACES)
def test_unavailable_address_is_reported_with_what_to_do(folder, description):
    """Without process numbers and function names, which do not help the reader."""
    server = Server(reactor, ChatFactory(AsyncChat), [description])
    with pytest.raises(ListenError) as caught:
        server.startService()
    assert str(caught.value) == f"cannot listen on {description!r}: {NO_PLACES[description]}"


def test_socket_in_use_is_reported_with_its_process(folder):
    """The lock file beside the socket names the process."""
    (folder / "chat.sock.lock").symlink_to(str(os.getppid()))
    server = Server(reactor, ChatFactory(AsyncChat), ["unix:chat.sock"])
    with pytest.raises(ListenError) as caught:
        server.startService()
    assert str(caught.value) == (
        f"cannot listen on 'unix:chat.sock': process {os.getppid()} already listens on 'chat.sock'; "
        "end it, or name another path"
    )


# See above.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_socket_can_be_used_once_its_address_is_free(folder):
    """The first attempt leaves no lock that would block the second."""
    server = Server(reactor, ChatFactory(AsyncChat), ["unix:other.sock"])
    for _ in range(2):
        with pytest.raises(ListenError, match="Address already in use"):
            server.startService()
    (folder / "other.sock").unlink()
    server.startService()
    assert server.ports
    server.stopService()
    reactor.iterate()
    assert sorted(each.name for each in folder.iterdir()) == ["folder"]


@pytest.mark.parametrize("make", [Server, Program])
@pytest.mark.parametrize(
    ("endpoints", "told"),
    [
        ([8007], "8007 is not an endpoint; write 'tcp:8007:interface=127.0.0.1'"),
        (
            [("10.0.0.1", 80)],
            "('10.0.0.1', 80) is not an endpoint; write 'tcp:80:interface=10.0.0.1'",
        ),
        ([None], "None is not an endpoint; write 'tcp:8007:interface=127.0.0.1'"),
        ([b"tcp:80"], "b'tcp:80' is not an endpoint; write 'tcp:8007:interface=127.0.0.1'"),
        (8007, "endpoints is 8007; give a list of them, as ['tcp:8007']"),
        ("tcp:80", "endpoints is the single string 'tcp:80'; give a list of them"),
    ],
)
def test_invalid_description_is_refused_when_the_server_is_made(make, endpoints, told):
    """A number, an address: the caller's mistake raises at the call, not at the start."""
    with pytest.raises(TypeError) as caught:
        make(reactor, ChatFactory(AsyncChat), endpoints)
    assert str(caught.value) == told
