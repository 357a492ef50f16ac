"""Signals that would end this process wait until what is half done is done.

Knows: signal handlers. Does not know: what is being done.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_back(on_signal: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep Ctrl-C, SIGTERM and SIGHUP until the body has ended; then they do what they always do.

    Handlers are changed and not the mask: a signal to the process would reach another of its
    threads, and Python would handle it in this one all the same. One that comes while handlers are
    changed takes effect before the body or after it. In any other thread than the main one there is
    nothing to hold back.

    Args:
        on_signal: called in the body at each signal, to bring the body to an early end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def keep(number: int, frame: object) -> None:
        arrived.append(number)
        if on_signal is not None:
            on_signal()

    before = {number: signal.getsignal(number) for number in ENDING}
    handled = [number for number, handler in before.items() if callable(handler)]
    try:
        for number in handled:
            signal.signal(number, keep)
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
        for arrival in arrived:
            signal.raise_signal(arrival)
