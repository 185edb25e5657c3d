"""
Programs that start at once: forks of a process that has imported Twisted and txasynchat already.

Each is a process of its own, with its own arguments, folder, environment and output, and runs as
``__main__``. It differs from one that ``python`` starts by what is imported when it begins, which else
takes a third of a second of computing for each of hundreds of programs.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from types import ModuleType


class Fork:
    """A running fork. It offers what is used of `subprocess.Popen`."""

    def __init__(self, pid, stdout, status):
        self.pid = pid
        self.stdout = stdout
        self.returncode = None
        self._status = status

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"fork {self.pid}", timeout)
            self.returncode = int(os.read(self._status, 10))
            os.close(self._status)
        return self.returncode

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            # Its own parent may know of its end, and say so, only after this has looked.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks. It begins with what Python reads of the environment."""

    def __init__(self):
        self._python = _for_python(os.environ)
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )

    def start(self, words, cwd, stderr, env=os.environ):
        """
        Start ``python *words``, where the first word is ``-m``, ``-c`` or a file, without input.

        Returns:
            The fork, with a pipe from its output; a process where *env* has something else for Python.
        """
        if _for_python(env) != self._python:
            return start_afresh(words, cwd, stderr, env)
        stdout, its_stdout = os.pipe()
        with open(its_stdout, "wb") as output:
            return self._fork(words, cwd, env, output, stderr, stdout=open(stdout))

    def run(self, words, cwd, timeout):
        """Run ``python *words`` likewise, and wait; return what `subprocess.run` does."""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            fork = self._fork(words, cwd, os.environ, stdout, stderr)
            try:
                status = fork.wait(timeout)
            finally:
                fork.kill()
                fork.wait()
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(words, status, stdout.read(), stderr.read())

    def _fork(self, words, cwd, env, output, errors, stdout=None):
        status, its_status = os.pipe()
        words = list(map(str, words))
        request = json.dumps([words, str(cwd), dict(env)]).encode() + b"\n"
        with open(os.devnull) as nothing, open(its_status, "wb"):
            errors = output if errors is subprocess.STDOUT else errors
            descriptors = [nothing.fileno(), output.fileno(), errors.fileno(), its_status]
            socket.send_fds(self._control, [request], descriptors)
            pid = int(self._control.recv(20))
        return Fork(pid, stdout, status)

    def stop(self):
        """End it, and the forks that still run."""
        self._control.close()
        self._process.wait()


def start_afresh(words, cwd, stderr, env=os.environ, pass_fds=()):
    """Start ``python *words`` without input, as a user does, with a pipe from its output."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        pass_fds=pass_fds,
        env=env,
    )


def _for_python(env):
    return {
        name: value
        for name, value in env.items()
        if name.startswith("PYTHON") and name != "PYTHONUNBUFFERED"  # which a fork sees to
    }


# -- in the process that forks


def serve(control):
    """Fork for each request, until there are no more; return in each fork, with its request."""
    statuses = {}

    def note_ends(*_):
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                status = statuses.pop(ended[0])
                with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                    os.write(status, b"%d" % os.waitstatus_to_exitcode(ended[1]))
                os.close(status)

    signal.signal(signal.SIGCHLD, note_ends)
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 65_536, 4)
        if not request:
            break
        while not request.endswith(b"\n"):
            request += control.recv(65_536)
        *streams, status = descriptors
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if not pid:
            control.close()
            for descriptor in (status, *statuses.values()):
                os.close(descriptor)
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            return json.loads(request)
        statuses[pid] = status
        for stream in streams:
            os.close(stream)
        control.sendall(b"%d" % pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pid in statuses:
        os.kill(pid, signal.SIGKILL)
    sys.exit()


def become(words, folder, env):
    """Run ``python *words`` in this process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ |= env
    if env.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(line_buffering=True)
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__builtins__ = __builtins__
    match words:
        case ["-m", name, *_]:
            sys.argv = words[1:]
            sys.path[0] = folder
            runpy._run_module_as_main(name)  # what -m calls
        case ["-c", text, *rest]:
            sys.argv = ["-c", *rest]
            sys.path[0] = ""
            exec(compile(text, "<string>", "exec", dont_inherit=True), vars(main))
        case [name, *_]:
            sys.argv = words
            sys.path[0] = os.path.dirname(os.path.realpath(name))
            main.__file__ = name
            with open(name, "rb") as file:
                exec(compile(file.read(), name, "exec", dont_inherit=True), vars(main))


def import_all():
    """Import all that a program may use, but the reactor, of which each has its own."""
    import txasynchat

    for module in pkgutil.walk_packages(txasynchat.__path__, "txasynchat."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    assert "twisted.internet.reactor" not in sys.modules
    gc.collect()
    if hasattr(gc, "freeze"):  # not on PyPy
        gc.freeze()


def main():
    import_all()
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    status = 0
    try:
        become(*request)
    except SystemExit as ending:
        if not isinstance(ending.code, int | None):
            raise
        status = ending.code or 0
    # As Python ends, except that it then takes down all modules, which takes longer than the rest.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main()
