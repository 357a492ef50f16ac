"""Signals that would end this process wait until what is half done is done.

Knows: signal handlers. Does not know: what is being done.

A signal that would end this process lets requests under way end first: they may be paid for.

Knows: signal handlers. Does not know: what a request is.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[None]:
    """Keep Ctrl-C, SIGTERM and SIGHUP until the body has ended; then they do what they always do.

    Handlers are changed and not the mask: a signal to the process would reach another of its
    threads, and Python would handle it in this one all the same. In any other thread than the main
    one there is nothing to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in ENDING}
    handled = [number for number, handler in before.items() if callable(handler)]
    for number in handled:
        signal.signal(number, lambda signal_number, _: came.append(signal_number))
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
        for arrived in came:
            signal.raise_signal(arrived)


@contextmanager
def told_to_stop(halt: Callable[[], None]) -> Iterator[None]:
    """In the body, Ctrl-C, SIGTERM and SIGHUP call `halt`; after it they do what they always do.

    Raised in the middle of an event loop, they would end it with what it had under way. In any
    other thread than the main one there is nothing to be told.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    handled = [number for number, handler in before.items() if callable(handler)]
    came: list[int] = []

    def told(number: int, frame: object) -> None:
        came.append(number)
        halt()

    for number in handled:
        signal.signal(number, told)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
        if came:
            signal.raise_signal(came[0])
