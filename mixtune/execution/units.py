"""A unit of work from running to done, failed, or planned again.

Knows: states, what makes one unit fail and what stops a study. Does not know: what a unit does.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mixtune.errors import MixtuneError, StoreError
from mixtune.store import Store

FAILURES = (MixtuneError, RuntimeError, ValueError, ArithmeticError, MemoryError)
"""What makes one run fail and lets the study go on; anything else, and a store that cannot be
written, stops the study."""


@contextmanager
def unit_of_work(
    store: Store, unit: str, stops: tuple[type[Exception], ...] = ()
) -> Iterator[list[Path]]:
    """Running → done with the files listed, failed on an error, planned when stopped.

    `stops`: errors that say nothing against the unit, after which it is planned again.
    """
    store.begin(unit)
    begun = time.monotonic()
    paths: list[Path] = []
    try:
        yield paths
    except (StoreError, OSError):
        # The disk failed, not the unit; if it cannot even be given back, the next start does.
        with suppress(StoreError):
            store.release(unit)
        raise
    except Exception as error:
        if isinstance(error, stops):
            store.release(unit)
        else:
            store.fail(unit, said(error), time.monotonic() - begun)
        raise
    except BaseException:
        store.release(unit)
        raise
    store.finish(unit, paths, time.monotonic() - begun)


def said(error: BaseException) -> str:
    """An error as a run keeps it."""
    return f"{type(error).__name__}: {error}"
