"""BACnet's transports: UDP and TCP on the loop, one pass at a time between scheduled tasks."""

import asyncore
import os
import signal
import socket
import threading
import time

import pytest
from bacpypes.comm import Client, bind
from bacpypes.core import deferred, run, stop
from bacpypes.pdu import PDU
from bacpypes.task import FunctionTask, RecurringTask, TaskManager
from bacpypes.tcp import TCPClientDirector, TCPServerDirector
from bacpypes.udp import UDPDirector

LIMIT = 10.0

TaskManager()


class End(Client):
    """The top of a stack: passes what arrives to a function."""

    def __init__(self, director, handle):
        super().__init__()
        self.handle = handle
        bind(self, director)

    def confirmation(self, pdu):
        self.handle(self, pdu)


def _answer(end, pdu):
    end.request(PDU(bytes(pdu.pduData).swapcase(), destination=pdu.pduSource))


def _run(spin=0.2):
    """Run until stop() is called; raise an error if that takes too long."""
    too_late = []

    def give_up():
        too_late.append(True)
        stop()

    task = FunctionTask(give_up)
    task.install_task(delta=LIMIT)
    run(spin=spin, sigterm=stop, sigusr1=None)
    task.suspend_task()
    assert not too_late


@pytest.fixture(autouse=True)
def _nothing_stays():
    yield
    asyncore.close_all()


def test_datagrams_are_answered_in_order():
    server, client = UDPDirector(("127.0.0.1", 0)), UDPDirector(("127.0.0.1", 0))
    answers = []

    def answered(_, pdu):
        answers.append(bytes(pdu.pduData))
        if len(answers) == 50:
            stop()

    End(server, _answer)
    asking = End(client, answered)
    for number in range(50):
        pdu = PDU(b"n%d" % number, destination=server.socket.getsockname())
        deferred(asking.request, pdu)
    _run()
    assert answers == [b"N%d" % number for number in range(50)]


def test_a_stream_carries_more_than_fits_into_one_send():
    server, client = TCPServerDirector(("127.0.0.1", 0)), TCPClientDirector()
    address = server.socket.getsockname()
    answer = bytearray()

    def answered(_, pdu):
        answer.extend(pdu.pduData)
        if len(answer) >= 3_000_000:
            stop()

    End(server, _answer)
    asking = End(client, answered)
    client.connect(address)
    deferred(asking.request, PDU(b"x" * 3_000_000, destination=address))
    _run()
    assert answer == b"X" * 3_000_000


def test_refused_connection_is_reported():
    errors = []

    class Director(TCPClientDirector):
        def actor_error(self, actor, error):
            errors.append(type(error))
            stop()

    director = Director()
    End(director, _answer)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        director.connect(deaf.getsockname())
        _run()
    assert errors == [ConnectionRefusedError]


def test_a_thread_ends_a_wait_through_a_pipe_while_tasks_recur():
    ticks = []

    class Tick(RecurringTask):
        def process_task(self):
            ticks.append(time.monotonic())
            if len(ticks) == 5:
                threading.Thread(target=deferred, args=(stop,)).start()

    tick = Tick(20)
    tick.install_task()
    _run()
    tick.suspend_task()
    assert len(ticks) >= 5


def test_a_signal_ends_the_program():
    task = FunctionTask(lambda: os.kill(os.getpid(), signal.SIGTERM))
    task.install_task(delta=0.05)
    _run()
