"""Study → examples, cells, runs, ids: everything that is known before anything is paid for."""
