//! Ways to break a mesh from outside, each against one invariant: the checker is checked by what it notices.

use std::{fs, io, path::Path, rc::Rc, sync::Arc};

use api::delta::{Origin, View};
use dataplane::control::kept;

use crate::{
    chance::Chance,
    mesh::{CLUSTERS, Mesh},
};

/// What is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sabotage {
    /// Disks say that they have synced and have not.
    LyingDisks,
    /// A proxy finds its first view on its disk when it starts again.
    OldView,
    /// A proxy finds half of its first and half of its last view.
    MixedView,
    /// A control plane finds its first bundle when it starts again.
    OldBundle,
    /// A workload is taken out although its stream is up.
    Forgetting,
    /// A cluster forgets what another one offers.
    EmptiedPeer,
    /// A control plane takes up an older configuration.
    OldConfiguration,
    /// A commit is called effective as soon as it is made.
    HastyWait,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Sabotage; 8] = [
        Sabotage::LyingDisks,
        Sabotage::OldView,
        Sabotage::MixedView,
        Sabotage::OldBundle,
        Sabotage::Forgetting,
        Sabotage::EmptiedPeer,
        Sabotage::OldConfiguration,
        Sabotage::HastyWait,
    ];

    /// The invariants by one of which it must be noticed.
    pub fn breaks(self) -> &'static [&'static str] {
        match self {
            Sabotage::LyingDisks => &["head", "denial", "endpoints", "disk", "liveness"],
            Sabotage::OldView => &["denial"],
            Sabotage::MixedView => &["mixture"],
            Sabotage::OldBundle => &["trust"],
            Sabotage::Forgetting | Sabotage::EmptiedPeer => &["endpoints"],
            Sabotage::OldConfiguration => &["head"],
            Sabotage::HastyWait => &["wait"],
        }
    }

    /// As the command line names it.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// Before a proxy with this state directory starts, which has held `views`.
pub fn before_proxy(sabotage: Option<Sabotage>, dir: &Path, views: &[(View, Origin)]) -> io::Result<()> {
    let (Some((first, old)), Some((last, origin))) = (views.first(), views.last()) else { return Ok(()) };
    match sabotage {
        Some(Sabotage::OldView) => kept::write(dir, first, old),
        Some(Sabotage::MixedView) => {
            let mut mixed = last.clone();
            for (name, item) in mixed.items.iter_mut().filter(|(name, _)| name.ends_with("-a")) {
                item.clone_from(first.items.get(name).unwrap_or(&item.clone()));
            }
            kept::write(dir, &mixed, origin)
        }
        _ => Ok(()),
    }
}

/// Before a control plane with this state directory starts.
pub fn before_plane(sabotage: Option<Sabotage>, dir: &Path) -> io::Result<()> {
    if sabotage != Some(Sabotage::OldBundle) || !dir.join("bundle.json").exists() {
        return Ok(());
    }
    let (now, first) = (dir.join("bundle.json"), dir.join("bundle.first"));
    if first.exists() { fs::copy(first, now) } else { fs::copy(now, first) }.map(drop)
}

/// Between two steps of a simulation.
pub fn strike(sabotage: Option<Sabotage>, mesh: &Rc<Mesh>, chance: &mut Chance) {
    let Some(plane) = mesh.serving(chance.pick(&CLUSTERS)) else { return };
    match sabotage {
        Some(Sabotage::Forgetting) => {
            let proxies = plane.registry.proxies().borrow().clone();
            let connected = proxies.values().find(|proxy| proxy.connected);
            let instance = connected.map(|proxy| proxy.registered.instance.clone());
            tokio::task::spawn_local(
                async move { plane.registry.forget(instance.into_iter().collect()).await },
            );
        }
        Some(Sabotage::EmptiedPeer) => plane.peers.send_modify(|peers| {
            let peers = Arc::make_mut(peers);
            peers.values_mut().for_each(|catalogue| Arc::make_mut(catalogue).services.clear());
        }),
        Some(Sabotage::OldConfiguration) => {
            let mut first = mesh.first_configuration.borrow_mut();
            let first = first.get_or_insert_with(|| plane.configuration.borrow().clone());
            plane.configuration.send_replace(first.clone());
        }
        Some(Sabotage::HastyWait) => {
            let commit = mesh.repository.borrow().last().clone();
            mesh.judge_effective(&commit);
        }
        _ => {}
    }
}
