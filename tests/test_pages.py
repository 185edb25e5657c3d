"""
The code in the pages: that of the examples, which are tested, is included and nowhere copied.

What the pages on embedding and on answering later show beside them runs here.
"""

import ast
import re
import socket
import sys
import textwrap
from pathlib import Path

import pytest

from helpers.peers import converse

#: So many lines that are the same in a page and in an example are a copy.
COPY = 4


@pytest.fixture
def pages(root):
    """The text of each page, the README included, by its path."""
    return {path: path.read_text() for path in [root / "README.md", *root.glob("docs/**/*.md")]}


@pytest.fixture
def examples(root):
    """The text of each example by its path."""
    return {path: path.read_text() for path in (root / "examples").iterdir() if path.is_file()}


def blocks(text, language):
    """Return the code in the fences of a language, without the common indentation."""
    pattern = rf"^ *(?:[*-] +)*```{re.escape(language)}\n(.*?)^ *```$"
    return [textwrap.dedent(code) for code in re.findall(pattern, text, re.MULTILINE | re.DOTALL)]


def inclusions(pages):
    """Yield the page, the file and the options of each ``literalinclude``."""
    pattern = r"^```\{literalinclude\} (\S+)\n(.*?)^```$"
    for page, text in pages.items():
        for target, options in re.findall(pattern, text, re.MULTILINE | re.DOTALL):
            found = dict(re.findall(r'^:([\w-]+): "?(.*?)"?$', options, re.MULTILINE))
            yield page, (page.parent / target).resolve(), found


def lines_of(code):
    return [line.strip() for line in code.splitlines() if line.strip()]


def runs(lines):
    """Return all runs of `COPY` lines."""
    return {tuple(lines[at : at + COPY]) for at in range(len(lines) - COPY + 1)}


def test_every_part_that_a_page_includes_is_there(pages, root):
    """A marker stands once in the file, and there is code between two of them."""
    included = list(inclusions(pages))
    assert len(included) > 10
    for page, file, options in included:
        assert root / "examples" in file.parents, page
        text = file.read_text()
        lines = text.splitlines()
        begin, end = 0, len(lines)
        for option, marker in options.items():
            if option == "language":
                continue
            assert option in {"start-after", "start-at", "end-before"}, (page, option)
            at = [number for number, line in enumerate(lines) if marker in line]
            assert len(at) == 1, f"{page}: {marker!r} stands {len(at)} times in {file}"
            if option == "end-before":
                end = at[0]
            else:
                begin = at[0] + (option == "start-after")
        assert lines_of("\n".join(lines[begin:end])), f"{page} includes nothing of {file}"


def test_no_page_has_a_copy_of_an_example(pages, examples):
    """It would stay as it is when the example changes."""
    for page, text in pages.items():
        for language in ("python", "py", "pycon", "{doctest}", "{code-block} python", ""):
            for code in blocks(text, language):
                for path, example in examples.items():
                    copied = runs(lines_of(code)) & runs(lines_of(example))
                    assert not copied, f"{page} has lines of {path}; include them: {copied}"


def test_code_in_pages_is_python(pages):
    """What a page shows without an example has no errors of syntax."""
    checked = 0
    for page, text in pages.items():
        for code in blocks(text, "python"):
            try:
                compile(code, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            except SyntaxError as error:
                pytest.fail(f"{page}: {error}\n{code}")
            checked += 1
    assert checked > 10


# What the samples on embedding take for granted: a program that was written for asyncore.
LEGACY = """
import asyncio
from txasynchat.compat import asynchat, asyncore, attach

class LineHandler(asynchat.async_chat):
    def __init__(self, sock):
        super().__init__(sock)
        self.set_terminator(b"\\n")

    def collect_incoming_data(self, data):
        self._collect_incoming_data(data)

    def found_terminator(self):
        self.push(b"you said " + self._get_data() + b"\\n")

class LegacyServer(asyncore.dispatcher):
    def __init__(self, address):
        super().__init__()
        self.create_socket()
        self.bind(address)
        self.listen(5)
        print("on", self.socket.getsockname()[1])

    def handle_accepted(self, sock, addr):
        LineHandler(sock)
"""


@pytest.fixture
def run_sample(pages, root, start, tmp_path):
    """Run the one sample on embedding that has some words in it, changed as told, behind `LEGACY`."""

    def run(words, says, *changes, then=""):
        samples = blocks(pages[root / "docs/howto/embed.md"], "python")
        [code] = [code for code in samples if words in code]
        for old, new in changes:
            assert old in code
            code = code.replace(old, new)
        file = tmp_path / "sample.py"
        file.write_text(f"{LEGACY}\n{code}\n{then}\n")
        return start([sys.executable, str(file)], says)

    return run


def says_back(peer):
    with peer, peer.makefile("rb") as answers:
        peer.settimeout(20)
        peer.sendall(b"hello\n")
        return answers.readline() == b"you said hello\n"


def test_sample_of_channels_beside_a_reactor_runs(run_sample):
    found = run_sample("reactor.callLater(3600", r"on (\d+)", ("8007", "0"))
    assert says_back(socket.create_connection(("127.0.0.1", int(found[1]))))


def test_sample_of_channels_in_an_asyncio_program_runs(run_sample):
    words = "await asyncio.Event().wait()"
    found = run_sample(words, r"on (\d+)", ("8007", "0"), then="asyncio.run(main())")
    assert says_back(socket.create_connection(("127.0.0.1", int(found[1]))))


def test_sample_of_a_legacy_handler_on_an_endpoint_runs(run_sample, tmp_path):
    listening = ("reactor.run()", 'print("listens", flush=True)\nreactor.run()')
    run_sample("hub:unix:/run/lines.sock", "listens", ("/run/lines.sock", "lines.sock"), listening)
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(tmp_path / "lines.sock"))
    assert says_back(peer)


def test_server_on_the_page_on_answering_later_answers_as_shown(pages, root, start, tmp_path):
    """Its lines are hashed in a thread, and answered in order."""
    page = pages[root / "docs/howto/answer.md"]
    [server] = [code for code in blocks(page, "python") if code.startswith("# hashes.py\n")]
    (tmp_path / "hashes.py").write_text(server)
    serving, talking = blocks(page, "console")
    program, *arguments = serving.removeprefix("$ ").replace(":8007:", ":0:").split()
    twistd = str(Path(sys.executable).with_name(program))
    port = int(start([twistd, *arguments], r"on 127\.0\.0\.1:(\d+)")[1])
    typed, shown = talking.split("\n", 1)
    assert r"'one\ntwo\n'" in typed
    assert converse(port, b"one\ntwo\n") == shown.encode()
