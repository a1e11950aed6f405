//! One tale at a time: whoever starts processes has the machine for itself, whatever number of threads tests have.

use tokio::sync::{Mutex, MutexGuard};

static MACHINE: Mutex<()> = Mutex::const_new(());

/// The machine, until it is dropped. Two meshes at once would only slow each other down.
pub struct Turn {
    _held: MutexGuard<'static, ()>,
}

impl Turn {
    /// Waits until nobody else of this program has it.
    pub async fn take() -> Self {
        Turn { _held: MACHINE.lock().await }
    }
}
