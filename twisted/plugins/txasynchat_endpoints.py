"""
The ``secure:``, ``proxy:`` and ``hub:`` endpoint strings; what they mean is imported when one is used.
"""

from typing import Any

from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _Server:
    prefix = "secure"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 Twisted's
        from txasynchat.endpoints import parse_server  # noqa: PLC0415 listing imports nothing

        return parse_server(reactor, *args, **kwargs)


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class _Client:
    prefix = "secure"

    def parseStreamClient(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 Twisted's
        from txasynchat.endpoints import parse_client  # noqa: PLC0415 listing imports nothing

        return parse_client(reactor, *args, **kwargs)


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _ProxyServer:
    prefix = "proxy"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 Twisted's
        from txasynchat.proxy.endpoints import parse_server  # noqa: PLC0415 listing imports nothing

        return parse_server(reactor, *args, **kwargs)


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _HubServer:
    prefix = "hub"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 Twisted's
        from txasynchat.hub.places import parse_server  # noqa: PLC0415 listing imports nothing

        return parse_server(reactor, *args, **kwargs)


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class _HubClient:
    prefix = "hub"

    def parseStreamClient(self, reactor: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 Twisted's
        from txasynchat.hub.places import parse_client  # noqa: PLC0415 listing imports nothing

        return parse_client(reactor, *args, **kwargs)


hub_server = _HubServer()
hub_client = _HubClient()
proxy_server = _ProxyServer()
secure_server = _Server()
secure_client = _Client()
