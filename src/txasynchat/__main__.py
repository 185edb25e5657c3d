"""
``python -m txasynchat run``: run a program that imports ``asyncore`` and ``asynchat``, unchanged.

The program sees what it would see under plain ``python``: its own ``sys.argv`` and ``sys.path[0]``,
itself as ``__main__``, its own exit status. A traceback that ends it shows only its own frames.

``enable`` and ``disable`` do so for all programs of an environment.
"""

from __future__ import annotations

import importlib.util
import io
import linecache
import marshal
import os
import pkgutil
import runpy
import sys
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, NoReturn

from txasynchat.compat import install
from txasynchat.compat._install import what_brings_back

if TYPE_CHECKING:
    from types import TracebackType

USAGE = """\
usage: python -m txasynchat run PROGRAM [ARGUMENT ...]
       python -m txasynchat run -m MODULE [ARGUMENT ...]
       python -m txasynchat run -c COMMAND [ARGUMENT ...]
       python -m txasynchat run - [ARGUMENT ...]
       python -m txasynchat enable [--user]
       python -m txasynchat disable [--user]

run: run a Python program with txasynchat's modules in the places of asyncore and asynchat.
PROGRAM is a file, or a folder or zip file that holds a __main__.py; - is standard input.
Options of Python's own, as -u, -W error or -X dev, may stand behind run.

enable: have them there for every program of this environment, and for each child that it
starts, until disable. --user: for this user alone.
"""

# Python's own options: those that take a value, of which the first two name the program and end the
# options; and those that take none.
_WITH_VALUE = "cmWX"
_PLAIN = "bBdEiIOPqRsSuvV"
_LONG_WITH_VALUE = "--check-hash-based-pycs"


def main() -> None:
    """Do what ``sys.argv`` says; for ``run``, become the program that it names."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]) or arguments[1:] in (["-h"], ["--help"]):
        sys.stdout.write(USAGE)
    elif arguments in (["enable"], ["enable", "--user"], ["disable"], ["disable", "--user"]):
        _enable_or_disable(arguments[0], user=len(arguments) == 2)
    elif arguments[:1] == ["run"] and len(arguments) > 1:
        _run(arguments[1:])
    else:
        _fail(USAGE)


def _enable_or_disable(command: str, *, user: bool) -> None:
    from txasynchat.compat import _enable  # noqa: PLC0415 - a program that is run pays for none of it

    do = _enable.enable if command == "enable" else _enable.disable
    try:
        lines = do(user=user)
    except _enable.CannotEnable as problem:
        sys.exit(f"txasynchat: {problem}")
    sys.stdout.write("txasynchat: " + "\n".join(lines) + "\n")


def _run(arguments: list[str]) -> None:
    options, what, rest = _split(arguments)
    if options:
        _start_again(options, [*what, *rest])
    install()
    try:
        match what:
            case ["-m", name]:
                _run_module(name, rest)
            case ["-c", text]:
                _run_text(text + "\n", "<string>", ["-c", *rest])
            case ["-"]:
                _run_standard_input(rest)
            case [_, path]:
                _run_program(path, rest)
    except SystemExit:
        raise
    except BaseException as error:
        if sentence := what_brings_back(error):
            error.add_note(sentence)
        _hide_our_frames()
        raise


def _split(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    # As Python does: its options; what is run, as ["-m", "name"], ["-c", "text"], ["--", "file"] or
    # ["-"]; its arguments.
    options: list[str] = []
    rest = arguments[:]

    def value_of(option: str, joined: str = "") -> str:
        if not joined and not rest:
            if option in ("-c", "-m", "--"):
                _fail(USAGE)
            _fail(f"txasynchat run: {option} wants a value\n")
        return joined or rest.pop(0)

    while rest:
        one = rest.pop(0)
        if one == "-":
            return options, [one], rest
        if one == "--" or not one.startswith("-"):
            return options, ["--", value_of("--", one.removeprefix("--"))], rest
        if one.startswith("--"):
            if one != _LONG_WITH_VALUE:
                _fail(f"txasynchat run: Python has no option {one}\n")
            options += [one, value_of(one)]
            continue
        for place, letter in enumerate(one[1:], 2):
            if letter in _WITH_VALUE:
                value = value_of(f"-{letter}", one[place:])
                if letter in "cm":
                    return options, [f"-{letter}", value], rest
                options += [f"-{letter}", value]
                break
            if letter not in _PLAIN:
                _fail(f"txasynchat run: a program cannot be run with an option -{letter}\n")
            options.append(f"-{letter}")
    if "-V" not in options:
        _fail(USAGE)
    return options, [], rest


def _start_again(options: list[str], rest: list[str]) -> NoReturn:
    # Python reads its options only when it starts, so this process is replaced.
    count = len(sys.argv) - 1
    ours = sys.orig_argv[1 : len(sys.orig_argv) - count]
    if not sys.executable or sys.orig_argv[len(ours) + 1 :] != sys.argv[1:]:
        text = " ".join(options)
        _fail(f"txasynchat run: write {text} before -m, as in python {text} -m txasynchat run\n")
    place = len(ours) - 2 if ours[-2:-1] == ["-m"] else 0
    os.execv(  # noqa: S606 - this Python itself
        sys.executable, [sys.executable, *ours[:place], *options, *ours[place:], "run", *rest]
    )


def _fail(message: str) -> NoReturn:
    sys.stderr.write(message)
    sys.exit(2)


def _new_main(file: str | None = None) -> ModuleType:
    # Until now __main__ is this module.
    module = ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    if sys.version_info < (3, 14):
        setattr(module, "__annotations__", {})  # noqa: B010 - not a declaration
    if file is not None:
        module.__file__ = file
        if sys.version_info < (3, 15):
            module.__dict__["__cached__"] = None
    sys.modules["__main__"] = module
    return module


def _run_module(name: str, arguments: list[str]) -> None:
    sys.argv = ["-m", *arguments]
    _new_main()
    # Not run_module(): its tracebacks and its __main__ are not those of ``python -m``.
    runpy._run_module_as_main(name)  # type: ignore[attr-defined] # what -m itself calls


def _run_program(path: str, arguments: list[str]) -> None:
    sys.argv = [path, *arguments]
    whole = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118 - python keeps ".." and links
    if pkgutil.get_importer(path) is not None:  # a folder or a zip file
        _set_first_path(whole)
        _new_main()
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined] # see above
        return
    try:
        with io.open_code(whole) as file:
            source = file.read()
    except OSError as error:
        _fail(
            f"{sys.executable}: can't open file {whole!r}: [Errno {error.errno}] {error.strerror}\n"
        )
    _set_first_path(str(Path(path).resolve().parent))
    module = _new_main(whole)
    if whole.endswith(".pyc") or source.startswith(importlib.util.MAGIC_NUMBER):
        code = _compiled(source)
        module.__loader__ = SourcelessFileLoader("__main__", whole)
    else:
        code = compile(source, whole, "exec", dont_inherit=True)
        module.__loader__ = SourceFileLoader("__main__", whole)
    exec(code, module.__dict__)  # noqa: S102 - this is what running a program is


def _compiled(data: bytes) -> CodeType:
    if not data.startswith(importlib.util.MAGIC_NUMBER):
        sys.exit("RuntimeError: Bad magic number in .pyc file")
    # The header has 16 bytes: the magic number, flags, and what is known of the source.
    code = marshal.loads(data[16:])  # noqa: S302 - what Python itself does with it
    if not isinstance(code, CodeType):
        sys.exit("RuntimeError: Bad code object in .pyc file")
    return code


def _run_text(text: str | bytes, name: str, arguments: list[str]) -> None:
    sys.argv = arguments
    _set_first_path("")
    module = _new_main(name if name == "<stdin>" else None)
    module.__loader__ = BuiltinImporter
    if name != "<stdin>" and sys.version_info >= (3, 13) and isinstance(text, str):
        # A traceback shows the lines.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - see above


def _run_standard_input(arguments: list[str]) -> None:
    if sys.stdin is None or sys.stdin.isatty():
        _fail(
            "txasynchat run -: standard input is not a file or pipe to read a program from; for a "
            "session write python -i -m txasynchat run -c ''\n"
        )
    _run_text(sys.stdin.buffer.read(), "<stdin>", ["-", *arguments])


def _set_first_path(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _hide_our_frames() -> None:
    # At the last moment, because until then the hook is the program's.
    hook = sys.excepthook

    def show(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> object:
        sys.excepthook = hook
        own = trace
        while own is not None and own.tb_frame.f_globals is not globals():
            own = own.tb_next  # runpy's, which started this module
        while own is not None and own.tb_frame.f_globals is globals():
            own = own.tb_next
        return hook(kind, error.with_traceback(own), own)

    sys.excepthook = show


if __name__ == "__main__":
    main()
