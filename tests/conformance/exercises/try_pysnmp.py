"""pysnmp 4: UDP agents and managers on dispatchers that keep maps of their own."""

import socket
import threading

from pyasn1.codec.ber import decoder, encoder
from pysnmp.carrier.asyncore.dgram import udp
from pysnmp.carrier.asyncore.dispatch import AsyncoreDispatcher
from pysnmp.proto import api

NAME = (1, 3, 6, 1, 2, 1, 1, 1, 0)


def _free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _agent(port, answers):
    """An agent that answers GET with a text, and ends after so many."""
    dispatcher = AsyncoreDispatcher()

    def answer(dispatcher, domain, address, message):
        while message:
            version = api.protoModules[api.decodeMessageVersion(message)]
            request, message = decoder.decode(message, asn1Spec=version.Message())
            reply = version.apiMessage.getResponse(request)
            pdu = version.apiMessage.getPDU(reply)
            version.apiPDU.setVarBinds(pdu, [(NAME, version.OctetString(f"of {port}"))])
            dispatcher.sendMessage(encoder.encode(reply), domain, address)
        answers.append(address)
        if len(answers) == 5:
            dispatcher.jobFinished(1)

    dispatcher.registerRecvCbFun(answer)
    dispatcher.registerTransport(
        udp.domainName, udp.UdpSocketTransport().openServerMode(("127.0.0.1", port))
    )
    dispatcher.jobStarted(1)
    return dispatcher


def _ask(port, number):
    dispatcher = AsyncoreDispatcher()
    version = api.protoModules[api.protoVersion2c]
    pdu = version.GetRequestPDU()
    version.apiPDU.setDefaults(pdu)
    version.apiPDU.setVarBinds(pdu, [(NAME, version.Null(""))])
    message = version.Message()
    version.apiMessage.setDefaults(message)
    version.apiMessage.setCommunity(message, "public")
    version.apiMessage.setPDU(message, pdu)
    got = []

    def take(dispatcher, domain, address, whole):
        reply, _ = decoder.decode(whole, asn1Spec=version.Message())
        for _, value in version.apiPDU.getVarBinds(version.apiMessage.getPDU(reply)):
            got.append(str(value))
        dispatcher.jobFinished(number)

    dispatcher.registerRecvCbFun(take)
    transport = udp.UdpSocketTransport().openClientMode()
    dispatcher.registerTransport(udp.domainName, transport)
    dispatcher.sendMessage(encoder.encode(message), udp.domainName, ("127.0.0.1", port))
    dispatcher.jobStarted(number)
    dispatcher.runDispatcher()
    dispatcher.closeDispatcher()
    return got


def test_two_agents_in_threads_answer_a_manager():
    ports = [_free_port(), _free_port()]
    answers = [[], []]
    agents = [_agent(port, got) for port, got in zip(ports, answers, strict=True)]
    threads = [threading.Thread(target=agent.runDispatcher) for agent in agents]
    for thread in threads:
        thread.start()
    for number in range(5):
        for port in ports:
            assert _ask(port, number + 1) == [f"of {port}"]
    for thread, agent in zip(threads, agents, strict=True):
        thread.join(20)
        assert not thread.is_alive()
        agent.closeDispatcher()
    assert [len(got) for got in answers] == [5, 5]
