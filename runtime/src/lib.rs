//! Stages six and seven: compile a view, decide a request. Pure.
