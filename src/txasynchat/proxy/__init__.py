"""
The PROXY protocol, versions 1 and 2: whose connection it is that a proxy passes on.
"""

from txasynchat.proxy.endpoints import ProxyClientEndpoint, ProxyServerEndpoint
from txasynchat.proxy.header import HeaderReader, Proxied, ProxiedTLS
from txasynchat.proxy.trust import ProxyOptions

__all__ = [
    "HeaderReader",
    "Proxied",
    "ProxiedTLS",
    "ProxyClientEndpoint",
    "ProxyOptions",
    "ProxyServerEndpoint",
]
