"""
Limits from the command line, a file, code and the handler's class: who is heard first, and what is
said about mistakes.

Also covers `limits.file`.
"""

import pytest
from twisted.internet.testing import MemoryReactorClock

from helpers.support import leaf, pem
from txasynchat import (
    AsyncChat,
    ChatFactory,
    ConfigurationError,
    Limits,
    ListenError,
    Server,
    ranges,
)
from txasynchat.limits import UNSET, read_limits
from txasynchat.limits.options import NAMES, in_force, most_connections, parse
from txasynchat.program import CannotStart
from txasynchat.twistd import Options, makeService


class Handler(AsyncChat):
    terminator = b"\n"
    limits = Limits(idle=4, message=4, session=4, first_message=4)

    def message_received(self, message):
        self.push(message)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "server.toml"
        path.write_text(text, "utf-8")
        return path

    return write


def options(*arguments):
    found = Options()
    found.parseOptions(list(arguments))
    return found


def test_command_line_file_code_class_and_default_are_asked_in_that_order(write):
    path = write("[limits]\nidle = 2\nmessage = 2\nwrite_stall = 2\n")
    served = makeService(options("--limit=idle=1", "--config", str(path)))
    code = Limits(idle=3, message=3, session=3, write_stall=3)
    limits = in_force(Handler(), served.limits.over(code), Limits.served())
    given = Limits(idle=1, message=2, write_stall=2, session=3, first_message=4)
    assert limits == given.over(Limits.served())


def test_a_server_comes_before_its_factory_and_leaves_the_rest_to_it():
    factory = ChatFactory(Handler, limits=Limits(idle=10, message=None))
    server = Server(MemoryReactorClock(), factory, [], limits=Limits(idle=5, stop_timeout=2))
    assert server.limits == Limits(idle=5, message=None, stop_timeout=2)
    assert server.stop_timeout == 2
    found = in_force(Handler(), factory.limits, None)
    assert (found.idle, found.message, found.session) == (5, None, 4)


def test_nothing_is_limited_where_nobody_says_so():
    class Bare(AsyncChat):
        pass

    assert in_force(Bare(), None, None) is None
    server = Server(MemoryReactorClock(), ChatFactory(Bare), [])
    assert not server.limits.given()
    assert server.stop_timeout == 15


def test_what_a_program_serves_is_limited_by_default():
    service = makeService(options())
    assert service._factory.default_limits == Limits.served()
    assert dict(Limits.served().given()) == {
        "first_message": 30,
        "idle": 300,
        "message": 60,
        "minimum_rate": 500,
        "write_stall": 30,
        "session": None,
        "per_address": 50,
        "accepts": 50,
        "queue": 128,
        "queue_timeout": 60,
        "connections": most_connections(),
    }


@pytest.mark.parametrize(
    ("descriptors", "connections"), [(1024, 768), (256, 192), (64, 32), (16, 1), (1 << 20, 65_536)]
)
def test_a_quarter_of_the_descriptors_is_left_to_the_program(monkeypatch, descriptors, connections):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert Limits.served().connections == connections


def test_each_limit_has_a_range():
    assert set(NAMES) == set(ranges.LIMITS)


def test_the_longest_message_of_a_handler_is_set_by_limits():
    factory = ChatFactory(Handler, limits=Limits(max_message_length=7))
    assert factory.buildProtocol(None).max_message_length == 7
    assert Handler().max_message_length == 16_384


def test_handshakes_at_once_are_set_for_each_endpoint(tmp_path):
    place = tmp_path / "server.pem"
    place.write_bytes(pem(leaf()))
    reactor, secure = MemoryReactorClock(), f"secure:tcp:0:certificate={place}"

    def counts(*endpoints, **limits):
        server = Server(reactor, ChatFactory(Handler), endpoints, limits=Limits(**limits))
        return [
            endpoint.options.limit.count
            for _, endpoint in server._endpoints
            if hasattr(endpoint, "options")
        ]

    assert counts(secure, "tcp:0", secure, handshakes=7) == [7, 7]
    assert counts(secure, handshakes=None) == [None]
    assert counts(secure) == [128]
    assert counts(f"{secure}:handshakes=3", f"{secure}:max_handshakes=4") == [3, 4]
    for word in ("handshakes", "max_handshakes"):
        with pytest.raises(ListenError, match="said twice: by the endpoint, and in limits"):
            counts(f"{secure}:{word}=3", handshakes=7)
    given = options("--limit=handshakes=9", "--listen", secure)
    [(_, endpoint)] = makeService(given)._endpoints
    assert endpoint.options.limit.count == 9


def test_stop_timeout_given_twice_is_an_error():
    with pytest.raises(ValueError, match="stop_timeout is given twice"):
        Server(
            MemoryReactorClock(),
            ChatFactory(Handler),
            [],
            stop_timeout=1,
            limits=Limits(stop_timeout=1),
        )


@pytest.mark.parametrize(
    "name", [name for name in NAMES if isinstance(ranges.LIMITS[name], ranges.Range)]
)
@pytest.mark.parametrize("value", [-1, float("nan"), "x", True])
def test_a_number_out_of_its_range_is_refused(name, value):
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be a .*number from|above"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (
            {"exempt": "10.0.0.0/8"},
            "exempt must be a list of networks, loopback, unix and proxies",
        ),
        ({"exempt": ["10.0.0.1/8"]}, "exempt must be a list of networks.*has host bits set"),
        ({"exempt": [5]}, "exempt must be a list of networks"),
        ({"refusal": "busy"}, "refusal must be bytes, or None, not 'busy'"),
        ({"when_full": "wait"}, "when_full must be refuse or queue, not 'wait'"),
        ({"when_full": None}, "when_full must be refuse or queue, not None"),
        ({"queue": None}, "queue must be a whole number from 1 up, not None"),
    ],
)
def test_another_value_that_makes_no_sense_is_refused(limits, said):
    with pytest.raises((TypeError, ValueError), match=said):
        Limits(**limits)


@pytest.mark.parametrize(
    "where", [ChatFactory, lambda _, limits: Server(None, None, [], limits=limits)]
)
def test_limits_of_another_type_are_refused(where):
    with pytest.raises(TypeError):
        where(Handler, limits={"idle": 3})
    with pytest.raises(TypeError, match="limits must be Limits"):
        type("Wrong", (AsyncChat,), {"limits": {"idle": 3}})


class TestTheCommandLine:
    def test_a_limit_is_a_name_and_a_number_or_none(self):
        assert parse("idle=2.5") == ("idle", 2.5)
        assert parse("session=none") == ("session", None)
        assert parse("max_message_length=8") == ("max_message_length", 8)
        assert options("--limit", "idle=1", "--limit", "idle=2").limits == {"idle": 2}

    def test_other_values_are_written_as_text(self):
        assert parse(r"refusal=421 \x62usy\\\r\n") == ("refusal", b"421 busy\\\r\n")
        assert parse("refusal=none") == ("refusal", None)
        assert parse("when_full=queue") == ("when_full", "queue")
        assert parse("exempt=10.0.0.0/8, loopback") == ("exempt", ("10.0.0.0/8", "loopback"))

    def test_older_options_are_other_words_for_a_limit(self):
        found = options("--stop-timeout=3", "--max-message-length=0")
        assert found.limits == {"stop_timeout": 3, "max_message_length": None}
        assert makeService(found).stop_timeout == 3

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--limit", "idel=3"], "--limit 'idel' is not a limit; did you mean idle?"),
            (["--limit", "idle"], "--limit 'idle' should be NAME=VALUE, as in idle=300"),
            (
                ["--limit", "idle=30s"],
                "--limit idle must be a number above 0 to 1,000,000, or none, not '30s'",
            ),
            (
                ["--limit", "when_full=none"],
                "--limit when_full must be refuse or queue, not 'none'",
            ),
            (
                ["--limit", "stop_timeout=3", "--stop-timeout=3"],
                "--limit stop_timeout= and --stop-timeout are the same limit; give one of them",
            ),
            (["--config", "none.toml"], "--config none.toml: No such file or directory"),
        ],
    )
    def test_a_mistake_is_told_in_one_line(self, arguments, said):
        with pytest.raises(CannotStart) as caught:
            options(*arguments)
        assert str(caught.value) == f"txasynchat: {said}"


class TestAFile:
    def test_its_table_has_the_same_names(self, write):
        path = write('[limits]\nidle = 2.5\nsession = "none"\nmax_message_length = 8\n')
        limits = read_limits(path)
        assert limits == Limits(idle=2.5, session=None, max_message_length=8)
        assert limits.message is UNSET

    def test_other_values_are_strings_and_lists(self, write):
        path = write(
            '[limits]\nexempt = ["loopback", "::1"]\nrefusal = "421\\r\\n"\nwhen_full = "queue"\n'
        )
        assert read_limits(path) == Limits(
            exempt=("loopback", "::1"), refusal=b"421\r\n", when_full="queue"
        )
        with pytest.raises(ConfigurationError, match=r"must be refuse or queue, not 'none'$"):
            read_limits(write('[limits]\nwhen_full = "none"\n'))

    def test_it_may_be_empty(self, write):
        assert not read_limits(write("")).given()

    @pytest.mark.parametrize(
        ("text", "line", "said"),
        [
            ("[limits]\n\nidel = 3", 3, "[limits] idel: not a limit; did you mean idle?"),
            (
                "[limits]\nwrite-stall = 3",
                2,
                "[limits] write-stall: not a limit; did you mean write_stall?",
            ),
            ("limits.idel = 3", 1, "[limits] idel: not a limit; did you mean idle?"),
            (
                '[limits]\nidle = "soon"',
                2,
                "[limits] idle: must be a number above 0 to 1,000,000, or \"none\", not 'soon'",
            ),
            (
                "[limits]\nidle = true",
                2,
                '[limits] idle: must be a number above 0 to 1,000,000, or "none", not true',
            ),
            (
                "[limits]\nmax_message_length = 1.5",
                2,
                '[limits] max_message_length: must be a whole number from 1 up, or "none", not 1.5',
            ),
            ("[limit]\nidle = 3", 1, "there is no table [limit]; did you mean limits?"),
            ("idle = 3", 1, "idle belongs into a table: write [limits] above it"),
            ("limits = 3", 1, "limits is not a table: write [limits], and below it idle = 300"),
            # Two lines may be meant, so none is told.
            ("limits = { idel = 1 }", None, "[limits] idel: not a limit; did you mean idle?"),
        ],
    )
    def test_a_mistake_is_told_with_its_place(self, write, text, line, said):
        path = write(text)
        with pytest.raises(ConfigurationError) as caught:
            read_limits(path)
        assert caught.value.line == line
        where = f"{path}" if line is None else f"{path}, line {line}"
        assert str(caught.value) == f"{where}: {said}"

    def test_a_unit_is_told_what_to_write(self, write):
        path = write('[limits]\nidle = "30 s"\n')
        with pytest.raises(
            ConfigurationError, match=r"; write idle = 30, without quotes or a unit$"
        ):
            read_limits(path)

    def test_what_is_not_toml_is_told_with_its_line(self, write):
        with pytest.raises(ConfigurationError, match=r"not TOML: .*\(at line 2, column"):
            read_limits(write("[limits]\nidle 3\n"))

    @pytest.mark.parametrize("value", ["9" * 5000, "[" * 3000 + "]" * 3000])
    def test_a_value_that_is_out_of_all_bounds_is_told(self, write, value):
        """A mistake is one line, even where Python itself does not read on."""
        with pytest.raises(ConfigurationError, match="not TOML: "):
            read_limits(write(f"[limits]\nidle = {value}\n"))

    def test_a_mark_of_byte_order_is_no_mistake(self, write):
        """Some editors put one in front of what they save."""
        assert read_limits(write("\ufeff[limits]\nidle = 3\n")).idle == 3

    def test_what_is_not_text_is_told(self, tmp_path):
        path = tmp_path / "x.toml"
        path.write_bytes(b"\xff")
        with pytest.raises(ConfigurationError, match="not UTF-8 at byte 0"):
            read_limits(path)
