"""
``python -m txasynchat run``: run a program that imports ``asyncore`` and ``asynchat``, unchanged.

The program sees what it would see under plain ``python``: its own ``sys.argv`` and
``sys.path[0]``, itself as ``__main__``, its own exit status; and a traceback that ends it shows
its own frames alone.
"""

from __future__ import annotations

import io
import os
import runpy
import sys
import zipimport
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from txasynchat.compat import install

if TYPE_CHECKING:
    from types import CodeType, TracebackType

USAGE = """\
usage: python -m txasynchat run PROGRAM [ARGUMENT ...]
       python -m txasynchat run -m MODULE [ARGUMENT ...]

Run a Python program with txasynchat's modules in the places of asyncore and asynchat.
PROGRAM is a file, or a folder or zip file that holds a __main__.py.
"""


def main() -> None:
    """
    Read ``sys.argv`` and become the program that it names.
    """
    arguments = sys.argv[1:]
    if arguments in (["-h"], ["--help"], ["run", "-h"], ["run", "--help"]):
        sys.stdout.write(USAGE)
        return
    if len(arguments) < 2 or arguments[0] != "run":
        _fail(USAGE)
    install()
    try:
        if arguments[1] == "-m":
            if len(arguments) < 3:
                _fail(USAGE)
            _run_module(arguments[2], arguments[3:])
        else:
            _run_program(arguments[1], arguments[2:])
    except SystemExit:
        raise
    except BaseException:
        _hide_our_frames()
        raise


def _fail(message: str) -> NoReturn:
    sys.stderr.write(message)
    sys.exit(2)


def _new_main() -> ModuleType:
    """
    Replace ``__main__``, which is this module now, by a fresh one.
    """
    module = ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    if sys.version_info < (3, 14):
        setattr(module, "__annotations__", {})  # noqa: B010 - not a declaration
    sys.modules["__main__"] = module
    return module


def _run_module(name: str, arguments: list[str]) -> None:
    """
    What ``python -m NAME`` does; ``sys.path[0]`` is right already.
    """
    sys.argv = ["-m", *arguments]
    _new_main()
    # Not run_module(): its tracebacks and its __main__ are not those of ``python -m``.
    runpy._run_module_as_main(name)  # type: ignore[attr-defined] # what -m itself calls


def _run_program(path: str, arguments: list[str]) -> None:
    """
    What ``python PATH`` does.
    """
    sys.argv = [path, *arguments]
    whole = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118 - python keeps ".." and links
    if Path(path).is_dir() or _is_zip(path):
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
    module = _new_main()
    module.__file__ = whole
    module.__loader__ = SourceFileLoader("__main__", module.__file__)
    if sys.version_info < (3, 15):
        module.__dict__["__cached__"] = None
    code: CodeType = compile(source, module.__file__, "exec", dont_inherit=True)
    exec(code, module.__dict__)  # noqa: S102 - this is what running a program is


def _is_zip(path: str) -> bool:
    try:
        zipimport.zipimporter(path)
    except zipimport.ZipImportError:
        return False
    return True


def _set_first_path(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _hide_our_frames() -> None:
    """
    Let the hook that shows the exception which ends the program see the program's frames only.

    Done at the last moment: until then the program has `sys.excepthook` to itself.
    """
    hook = sys.excepthook

    def show(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> object:
        sys.excepthook = hook
        own = trace
        while own is not None and own.tb_frame.f_globals is not globals():
            own = own.tb_next  # runpy's, that started us
        while own is not None and own.tb_frame.f_globals is globals():
            own = own.tb_next
        return hook(kind, error.with_traceback(own), own)

    sys.excepthook = show


if __name__ == "__main__":
    main()
