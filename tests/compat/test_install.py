"""
install() and uninstall(): where ``import asyncore`` looks.
"""

import subprocess
import sys
import types

import pytest

from txasynchat.compat import asynchat, asyncore, install, uninstall


@pytest.fixture(autouse=True)
def modules(monkeypatch):
    """Remove the two modules from `sys.modules`, and restore them at the end."""
    for name in ("asyncore", "asynchat"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    uninstall()


def test_both_names_import_the_facade():
    install()
    import asynchat as chat
    import asyncore as core

    assert core is asyncore
    assert chat is asynchat
    assert chat.asyncore is core


def test_installing_twice_has_no_further_effect():
    install()
    install()
    uninstall()
    assert "asyncore" not in sys.modules
    assert "asynchat" not in sys.modules
    uninstall()


def test_uninstall_puts_back_what_was_there():
    before = {name: types.ModuleType(name) for name in ("asyncore", "asynchat")}
    sys.modules.update(before)
    install()
    assert sys.modules["asyncore"] is asyncore
    uninstall()
    assert {name: sys.modules.pop(name) for name in before} == before


def test_another_asyncore_with_live_channels_is_not_replaced():
    other = sys.modules["asyncore"] = types.ModuleType("asyncore")
    other.socket_map = {5: object()}
    with pytest.raises(
        RuntimeError, match=r"drives 1 channels: call txasynchat.install\(\) earlier"
    ):
        install()
    assert sys.modules["asyncore"] is other
    other.socket_map.clear()
    install()
    assert sys.modules["asyncore"] is asyncore


def test_install_is_exported_by_the_package():
    import txasynchat

    assert txasynchat.install is install
    assert txasynchat.uninstall is uninstall


def test_every_public_name_of_the_stdlibs_modules_is_there():
    names = {
        asyncore: """
            EAGAIN EALREADY EBADF ECONNABORTED ECONNRESET EINPROGRESS EINVAL EISCONN ENOTCONN EPIPE
            ESHUTDOWN EWOULDBLOCK ExitNow close_all compact_traceback dispatcher
            dispatcher_with_send errorcode file_dispatcher file_wrapper loop os poll poll2 poll3
            read readwrite select socket socket_map sys time warnings write _exception
            _DISCONNECTED _reraised_exceptions _strerror
        """,
        asynchat: "async_chat asyncore deque find_prefix_at_end simple_producer",
    }
    for module, listed in names.items():
        for name in listed.split():
            assert hasattr(module, name), name


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="3.12 and later have nothing to compare with"
)
def test_no_class_has_public_names_beyond_the_stdlibs():
    script = """
import warnings
warnings.simplefilter("ignore")
import asyncore, asynchat, json
print(json.dumps({
    f"{c.__module__}.{c.__name__}": sorted(n for n in dir(c) if not n.startswith("_"))
    for c in (asyncore.dispatcher, asyncore.dispatcher_with_send, asyncore.file_dispatcher,
              asyncore.file_wrapper, asynchat.async_chat)}))
"""
    import json

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, timeout=30
    )
    # Except for one setting, these are attributes of the instances there.
    extras = {
        "asynchat.async_chat": {"ac_join_writes", "ac_in_buffer", "producer_fifo", "terminator"},
        "asyncore.dispatcher_with_send": {"out_buffer"},
    }
    for full_name, theirs in json.loads(done.stdout).items():
        module_name, name = full_name.split(".")
        ours = getattr({"asyncore": asyncore, "asynchat": asynchat}[module_name], name)
        new = {n for n in dir(ours) if not n.startswith("_")} - set(theirs)
        allowed = extras.get(full_name, set()) | {"start_tls"}
        assert new <= allowed, full_name
        assert set(theirs) <= set(dir(ours))


def test_classes_have_the_stdlibs_names():
    assert repr(asyncore.dispatcher()).startswith("<asyncore.dispatcher at 0x")
    assert repr(asynchat.async_chat()).startswith("<asynchat.async_chat at 0x")
    assert asyncore.ExitNow.__module__ == "asyncore"
