"""Imports of the process that workers are forked from: everything they need.

It computes nothing: a process that has computed with torch may not be forked.
"""

import gc

import mixtune.execution.pool  # noqa: F401 - for processes that are forked from this one

# No longer visited by the garbage collector, so that workers share the memory, and the process ends
# at once when it is no longer needed.
gc.freeze()
