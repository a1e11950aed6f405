//! The weft command.
