"""
``twistd asynchat``: named here by string, so that listing plugins imports nothing of ours.
"""

from twisted.application.service import ServiceMaker

asynchat = ServiceMaker(
    "txasynchat",
    "txasynchat.twistd",
    "Serve asynchat-style line and frame protocols on any Twisted endpoint.",
    "asynchat",
)
