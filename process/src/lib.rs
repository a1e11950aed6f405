//! What every Weft process does: start, readiness, admin listener, logs, tracked tasks, drain.
