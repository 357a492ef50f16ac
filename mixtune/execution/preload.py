"""What the process that workers are forked from imports: all that they need.

Knows: that nothing imported is garbage. Does not know: anything else; it computes nothing, since a
process that has may not be forked.
"""

import gc

import mixtune.execution.pool  # noqa: F401 - for those that are forked from here

# Left out of every look for garbage from here on, so that workers go on sharing the memory, and the
# process ends at once when it is no longer needed.
gc.freeze()
