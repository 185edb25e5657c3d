"""
With this folder on PYTHONPATH, every program finds itself on a system with ``poll`` and no better.
"""

import select

for name in list(vars(select)):
    if name.lower().startswith(("epoll", "kqueue", "kevent", "kq_")):
        delattr(select, name)
