"""Place for the case of planning and bookkeeping: what 10 to 10,000 runs cost beside their work.

A case is a function of a `bench.run.Run` that returns a `bench.results.Outcome`. It is part of the
benchmark once `bench/cases.py` lists it; this one is not written yet, so it is not listed.
"""
