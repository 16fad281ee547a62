"""Linear algebra on one thread: a sum that is split among threads is rounded otherwise, so their number would decide bytes."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["one_thread", "threads"]

_PREFIXES_AND_SUFFIXES = (("scipy_", "64_"), ("scipy_", ""), ("", "64_"), ("", ""))
"""Of OpenBLAS's names in the builds that NumPy is linked with."""


def _function(name: str) -> Callable[..., int] | None:
    """A function of the OpenBLAS that NumPy uses; None where NumPy uses another library."""
    try:
        # The symbols of what a library is linked with are found through it (dlsym(3)).
        library = ctypes.CDLL(importlib.import_module("numpy.linalg._umath_linalg").__file__)
    except (ImportError, AttributeError, OSError):
        return None
    for before, after in _PREFIXES_AND_SUFFIXES:
        found: Callable[..., int] | None = getattr(library, f"{before}openblas_{name}{after}", None)
        if found is not None:
            return found
    return None


def threads() -> int | None:
    """How many threads NumPy's OpenBLAS uses now; None where NumPy uses another library."""
    get = _function("get_num_threads")
    return None if get is None else int(get())


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread within, in the whole process; as many as before afterwards. Nothing where NumPy uses another library."""
    before, put = threads(), _function("set_num_threads")
    if before is None or put is None:
        yield
        return
    put(1)
    try:
        yield
    finally:
        put(before)
