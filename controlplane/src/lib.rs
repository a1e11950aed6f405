//! The control plane: Git, store, registry, snapshot, push, admin API.
