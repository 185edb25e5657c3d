"""pyinotify: `AsyncNotifier` is a `file_dispatcher` on an inotify descriptor."""

import asyncore
import threading

import pyinotify


class Names(pyinotify.ProcessEvent):
    def my_init(self, seen):
        self.seen = seen

    def process_IN_CREATE(self, event):  # noqa: N802 - pyinotify calls it by that name
        self.seen.append(event.name)


def _notifier(folder, seen, channel_map=None):
    manager = pyinotify.WatchManager()
    manager.add_watch(str(folder), pyinotify.IN_CREATE)
    return pyinotify.AsyncNotifier(manager, Names(seen=seen), channel_map=channel_map)


def test_created_files_are_seen_in_order(tmp_path):
    seen = []
    notifier = _notifier(tmp_path, seen)
    try:
        for number in range(20):
            (tmp_path / f"file{number}").touch()
            asyncore.loop(timeout=5, use_poll=number % 2, count=1)
    finally:
        notifier.close()
        notifier.stop()
    assert seen == [f"file{number}" for number in range(20)]
    assert not asyncore.socket_map


def test_two_threads_work_with_private_maps(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    seen = [[], []]
    maps = [{}, {}]
    notifiers = []
    for folder, names, own in zip(folders, seen, maps, strict=True):
        folder.mkdir()
        notifiers.append(_notifier(folder, names, own))

    def watch(number):
        while len(seen[number]) < 10:
            asyncore.loop(timeout=5, map=maps[number], count=1)

    threads = [threading.Thread(target=watch, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for number in range(10):
        for folder in folders:
            (folder / str(number)).touch()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for own, notifier in zip(maps, notifiers, strict=True):
        asyncore.close_all(own)
        notifier.stop()
    assert seen == [[str(number) for number in range(10)]] * 2
