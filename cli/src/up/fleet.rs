//! The processes that one `weft up` has started.

use std::process::Child;

use anyhow::bail;

use crate::process::{Process, last_words};

/// Invariant: every child is reaped, so that the dead are seen to be dead.
#[derive(Default)]
pub(crate) struct Fleet {
    children: Vec<(Process, Child)>,
}

impl Fleet {
    pub(crate) fn spawn(&mut self, process: Process) -> anyhow::Result<()> {
        let child = process.spawn()?;
        self.children.push((process, child));
        Ok(())
    }

    /// Forgets who has ended.
    pub(crate) fn reap(&mut self) {
        self.children.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
    }

    /// Leaves nobody, whatever became of the pid files.
    pub(crate) fn finish(&mut self) {
        self.reap();
        for (_, mut child) in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// An error with its last words if one has ended already.
    pub(crate) fn all_alive(&mut self) -> anyhow::Result<()> {
        for (process, child) in &mut self.children {
            if let Ok(Some(status)) = child.try_wait() {
                bail!("the {} ended ({status}):\n{}", process.name, last_words(&process.dir));
            }
        }
        Ok(())
    }
}
