"""Defer signals that would end this process until a piece of work is whole.

Knows: signal handlers. Does not know: what the work is.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TERMINATION_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a terminal or a closing session sends to all processes of a command."""


@contextmanager
def defer_signals(on_signal: Callable[[], None] | None = None) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP take effect after the body.

    Handlers are changed and not the mask: a signal to the process would reach another of its
    threads, and Python would handle it in this one all the same. A signal that comes while handlers
    are changed takes effect before the body or after it. In any other thread than the main one
    nothing is deferred.

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

    before = {number: signal.getsignal(number) for number in TERMINATION_SIGNALS}
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
