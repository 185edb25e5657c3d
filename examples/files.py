"""
Files of a folder, sent by producers: a gigabyte takes no more memory than a line.

Run it with a folder, then ``nc 127.0.0.1 8007``: a name gets its size and the file; an empty line
lists the names.
"""

import os
import sys
from pathlib import Path

from typing_extensions import override

from txasynchat import AsyncChat, ChatFactory, FileProducer, serve


class Files(AsyncChat):
    terminator = (b"\n", b"\r\n")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @override
    def message_received(self, message: bytes) -> None:
        end = self.matched_terminator  # lines end as the client's own do
        if not message:
            self.push_with_producer(name + end for name in self.names())
        elif message in self.names():
            path = self.folder / os.fsdecode(message)
            # Later pushes are sent later, however long the file takes.
            self.push_line(b"%d bytes" % path.stat().st_size)
            self.push_with_producer(FileProducer(path))
        else:
            self.push_line(b"no such file")

    def names(self) -> list[bytes]:
        return sorted(os.fsencode(path.name) for path in self.folder.iterdir() if path.is_file())


def main(folder: str = ".", *endpoints: str) -> None:
    factory = ChatFactory(Files, Path(folder))
    serve(factory, *(endpoints or ["tcp:8007:interface=127.0.0.1"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
