"""
Faults of the standard library's loop that this one repairs.
"""

import os
import socket
import threading
import time

import pytest
from OpenSSL import SSL

from helpers.loops import LIMIT, Chat, Recorder, check_that_it_rests, in_thread, until, waits
from txasynchat.compat import asyncore


@pytest.mark.usefixtures("each_way")
class TestRepairs:
    def test_push_from_another_thread_wakes_the_loop(self, channels, pair):
        near, far = pair()
        chat = Chat(far, channels)
        ready = threading.Event()

        def push():
            ready.wait(LIMIT)
            until(lambda: waits(channels), "the wait")
            chat.push(b"x" * 5_000_000)  # far more than the system takes at once
            chat.close_when_done()

        got = []

        def read():
            while data := near.recv(65536):
                got.append(len(data))

        with in_thread(push), in_thread(read):
            ready.set()
            asyncore.loop(timeout=None, map=channels)
        assert sum(got) == 5_000_000

    def test_loop_returns_when_another_thread_closes_the_last_channel(self, channels, pair):
        _, far = pair()
        chat = Chat(far, channels)

        def close():
            until(lambda: waits(channels), "the wait")
            chat.close()

        with in_thread(close):
            asyncore.loop(timeout=None, map=channels)

    def test_loop_notices_a_channel_added_by_another_thread(self, channels, pair):
        _, far = pair()
        idle = Chat(far, channels)
        near, sock = pair()
        near.send(b"quit\n")

        class Last(asyncore.dispatcher):
            def writable(self):
                return False

            def handle_read(self):
                self.close()
                idle.close()

        last = Last(sock, {})
        last._map = channels

        def add():
            until(lambda: waits(channels), "the wait")
            last.add_channel()

        with in_thread(add):
            asyncore.loop(timeout=None, map=channels)

    def test_channel_that_changes_at_its_end_does_not_spin(self, channels, pair):
        """It reports a change each time."""
        near, far = pair()
        reads = []

        class Answering(Chat):
            def handle_read(self):
                self.recv(10)
                reads.append(1)
                self.push(b"you have gone")

            def handle_close(self):
                pass

        Answering(far, channels)
        near.shutdown(socket.SHUT_WR)
        check_that_it_rests(
            lambda: len(reads), lambda: asyncore.loop(timeout=0.05, map=channels, count=1)
        )

    def test_channel_that_forgets_to_close_does_not_spin(self, channels, pair):
        near, far = pair()
        closes = []

        class Forgetful(Recorder):
            def handle_close(self):
                closes.append(1)

        Forgetful(far, channels)
        near.close()
        # It is told again and again all the same, as the stdlib does without end.
        check_that_it_rests(
            lambda: len(closes), lambda: asyncore.loop(timeout=0.5, map=channels, count=1)
        )

    def test_closed_socket_left_in_the_map_does_not_spin_in_poll_mode(self, channels, pair):
        _, far = pair()
        closes = []

        class Forgetful(Recorder):
            def handle_close(self):
                closes.append(1)

        Forgetful(far, channels)
        # loop()'s own descriptors must not get the number that is free then.
        asyncore.loop(timeout=0, use_poll=True, map=channels, count=1)
        far.close()
        check_that_it_rests(
            lambda: len(closes),
            lambda: asyncore.loop(timeout=0.5, use_poll=True, map=channels, count=1),
        )
        channels.clear()

    def test_a_closed_socket_left_in_the_map_leaves_the_loop_in_select_mode(self, channels, pair):
        """As in the stdlib; epoll alone would forget the channel silently."""
        near, far = pair()

        class Closing(Recorder):
            def handle_read(self):
                self.socket.close()

        Closing(far, channels)
        near.send(b"x")
        with pytest.raises(OSError, match="Bad file descriptor"):
            asyncore.loop(timeout=LIMIT, map=channels)
        with pytest.raises(OSError, match="Bad file descriptor"):
            asyncore.loop(timeout=LIMIT, map=channels)
        channels.clear()

    def test_reused_number_does_not_get_the_event_of_its_former_owner(self, channels, pair):
        near, far = pair()
        first_near, first_sock = pair()
        woken = []

        class Fresh(Recorder):
            def handle_read(self):
                woken.append(self)

        class First(Recorder):
            def handle_read(self):
                super().handle_read()
                number = victim._fileno
                victim.close()
                fresh = socket.socket()
                os.dup2(fresh.fileno(), number)
                fresh.close()
                Fresh(socket.socket(fileno=number), channels)

        first = First(first_sock, channels)
        victim = Recorder(far, channels)
        far.detach  # noqa: B018 - victim owns it now
        first_near.send(b"x")
        near.send(b"for the victim")
        until(lambda: len(driving_ready(channels)) == 2, "both events")
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        assert first.got == [b"x"]
        assert victim.got == []
        assert woken == []

    def test_map_may_be_edited_by_another_thread_all_the_time(self, channels, pair):
        near, far = pair()
        chat = Chat(far, channels)
        stop = threading.Event()

        def edit():
            while not stop.is_set():
                a, b = socket.socketpair()
                with a:
                    Recorder(b, channels).close()

        with in_thread(edit):
            for _ in range(300):
                near.send(b"x\n")
                before = len(chat.got)
                while len(chat.got) == before:
                    asyncore.loop(timeout=LIMIT, map=channels, count=1)
            stop.set()
        assert chat.got == [b"x"] * 300

    def test_a_channel_that_another_thread_closes_in_mid_pass_does_not_end_the_loop(
        self, channels, pair
    ):
        victim = Recorder(pair()[1], channels)  # earlier in the map: it was already asked
        near, far = pair()

        class Slow(Recorder):
            def readable(self):
                if victim.socket.fileno() >= 0:
                    closing = threading.Thread(target=victim.close)
                    closing.start()
                    closing.join(LIMIT)
                return True

        slow = Slow(far, channels)
        near.send(b"x")
        # The stdlib passes the closed number to select(2), and its loop() ends with EBADF.
        asyncore.loop(timeout=LIMIT, map=channels, count=1)
        asyncore.loop(timeout=LIMIT, map=channels, count=1 if not slow.got else 0)
        assert slow.got == [b"x"]
        assert list(channels.values()) == [slow]

    def test_decrypted_bytes_inside_openssl_are_read(self, channels, tls_pair):
        client, server = tls_pair
        client.sendall(b"a" * 10)  # one record, read in pieces of four

        class Small(Recorder):
            def handle_read(self):
                try:
                    self.got.append(self.socket.recv(4))
                except (ssl_module().SSLWantReadError, SSL.WantReadError):
                    return

        small = Small(server, channels)
        while sum(map(len, small.got)) < 10:
            started = time.monotonic()
            asyncore.loop(timeout=LIMIT, map=channels, count=1)
            assert time.monotonic() - started < LIMIT / 2
        assert small.got == [b"aaaa", b"aaaa", b"aa"]

    def test_more_than_1024_descriptors_are_served(self, channels, pair):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
        near, far = pair()
        os.dup2(far.fileno(), 2345)
        try:
            with socket.socket(fileno=2345) as high:
                recorder = Recorder(high, channels)
                for use_poll in (False, True):
                    near.send(b"x")
                    asyncore.loop(timeout=LIMIT, use_poll=use_poll, map=channels, count=1)
                near.send(b"x")
                asyncore.poll(LIMIT, channels)
                assert recorder.got == [b"x", b"x", b"x"]
                recorder.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def driving_ready(channels):
    import select

    return select.select(list(channels), [], [], 0)[0]


def ssl_module():
    import ssl

    return ssl


@pytest.fixture(params=["ssl", "pyOpenSSL"])
def tls_pair(request, tmp_path):
    import ssl

    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    certificate.private_key_pem.write_to_path(key)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    near, far = socket.socketpair()
    near.settimeout(LIMIT)
    result = []

    def shake():
        if request.param == "ssl":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(chain, key)
            result.append(context.wrap_socket(far, server_side=True))
        else:
            context = SSL.Context(SSL.TLS_SERVER_METHOD)
            context.use_certificate_chain_file(str(chain))
            context.use_privatekey_file(str(key))
            connection = SSL.Connection(context, far)
            connection.set_accept_state()
            connection.do_handshake()
            result.append(connection)

    with in_thread(shake):
        client = trust.wrap_socket(near, server_hostname="localhost")
    (server,) = result
    yield client, server
    client.close()
    server.close()
    far.close()
