"""Work done one item ahead of the one who takes it."""

import concurrent.futures

_END = object()


def ahead(items):
    """Yields the items of an iterator, the next made in a thread of its own meanwhile.

    No more than one waits. What making an item raises is raised where it is taken, and
    a consumer that stops ends the thread once the item in work is made.

    Args:
        items: An iterator.
    """
    with concurrent.futures.ThreadPoolExecutor(1, "ahead") as thread:
        waiting = thread.submit(next, items, _END)
        while (item := waiting.result()) is not _END:
            waiting = thread.submit(next, items, _END)
            yield item
