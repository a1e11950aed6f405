//! What is lost, in which way, and how it comes back.

use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::Serialize;
use weft_tests::lab::{
    Guard, Lab, Partition,
    mesh::{CLUSTERS, control, gateways},
};

use crate::shop::{ETCD, GIT, PORT, hosts, instances};

/// What is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Row {
    /// The application of one of east's two catalogues
    Application,
    /// Its sidecar; dropped and rejected: the whole host
    Sidecar,
    /// East's zone a: an instance of each service and a gateway
    Zone,
    /// One of west's two east-west gateways
    Gateway,
    /// Both of them
    Gateways,
    /// The federation link
    Link,
    /// East's control plane
    PrimaryControl,
    /// West's control plane
    RemoteControl,
    /// East's etcd
    Etcd,
    /// The Git server
    Git,
    /// All of west
    Remote,
    /// All of east, etcd too
    Primary,
}

/// In which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// SIGKILL; started again
    Kill,
    /// SIGSTOP; SIGCONT
    Stop,
    /// Packets from and to it vanish
    Drop,
    /// Packets from and to it are answered by resets
    Reject,
}

/// What a row means in this laboratory.
pub struct Loss {
    /// Whose processes, or whose packets.
    pub hosts: Vec<String>,
    /// Only this program of theirs.
    program: Option<&'static str>,
    place: Place,
}

/// Where packets get lost.
enum Place {
    /// Between the hosts and all others.
    Around,
    /// Between the two hosts alone.
    Between,
    /// On the host itself, before this port.
    Port(u16),
}

/// Something that is lost now.
pub struct Fault<'a> {
    lab: &'a Lab,
    loss: &'a Loss,
    way: Way,
    guard: Option<Guard<'a>>,
}

impl Row {
    /// The row as the laboratory has it.
    pub fn loss(self, lab: &Lab) -> Loss {
        let [east, west] = CLUSTERS;
        let around = |hosts: Vec<String>| Loss { hosts, program: None, place: Place::Around };
        let catalogue = || vec!["east-catalogue-1".to_owned()];
        match self {
            Row::Application => {
                Loss { program: Some("weft"), place: Place::Port(PORT), ..around(catalogue()) }
            }
            Row::Sidecar => Loss { program: Some("weft-proxy"), ..around(catalogue()) },
            Row::Zone => {
                let first = instances(lab, east).into_iter().filter(|host| host.ends_with("-1"));
                around(first.chain([gateways(east)[0].clone()]).collect())
            }
            Row::Gateway => around(vec![gateways(west)[0].clone()]),
            Row::Gateways => around(gateways(west).into()),
            Row::Link => Loss { place: Place::Between, ..around(CLUSTERS.map(control).into()) },
            Row::PrimaryControl => around(vec![control(east)]),
            Row::RemoteControl => around(vec![control(west)]),
            Row::Etcd => around(vec![ETCD.to_owned()]),
            Row::Git => around(vec![GIT.to_owned()]),
            Row::Remote => around(hosts(lab, west)),
            Row::Primary => around([hosts(lab, east), vec![ETCD.to_owned()]].concat()),
        }
    }

    /// Why this cannot be lost in that way.
    pub fn senseless(self, way: Way) -> Option<&'static str> {
        match (self, way) {
            (Row::Link, Way::Kill | Way::Stop) => {
                Some("a link is no process; its ends are the rows of the control planes")
            }
            _ => None,
        }
    }

    /// The cluster whose control plane is asked for the status: one that lives.
    pub fn asked(self) -> &'static str {
        let [east, west] = CLUSTERS;
        if matches!(self, Row::Primary | Row::PrimaryControl) { west } else { east }
    }
}

impl Loss {
    /// Whether a host is lost, or one of its processes.
    pub fn has(&self, host: &str) -> bool {
        self.hosts.iter().any(|lost| lost == host)
    }

    /// The east-west gateways that are lost.
    pub fn gateways(&self) -> Vec<String> {
        CLUSTERS.into_iter().flat_map(gateways).filter(|gateway| self.has(gateway)).collect()
    }

    fn packets<'a>(&self, lab: &'a Lab) -> Partition<'a> {
        match self.place {
            Place::Around => lab.cut_off(&self.hosts),
            Place::Between => lab.partition(&self.hosts[0], &self.hosts[1]),
            Place::Port(port) => lab.at_port(&self.hosts[0], port),
        }
    }
}

impl<'a> Fault<'a> {
    /// From now on it is lost.
    ///
    /// # Panics
    /// When a host has no process that would be lost.
    pub fn strike(lab: &'a Lab, loss: &'a Loss, way: Way) -> Self {
        let guard = match way {
            Way::Kill => {
                // All at once, before the ends of any are waited for.
                signal(lab, loss, Signal::SIGKILL);
                loss.hosts.iter().for_each(|host| lab[host].kill(loss.program));
                None
            }
            Way::Stop => {
                signal(lab, loss, Signal::SIGSTOP);
                None
            }
            Way::Drop => Some(loss.packets(lab).drop()),
            Way::Reject => Some(loss.packets(lab).reject()),
        };
        Fault { lab, loss, way, guard }
    }

    /// From now on it is there again.
    ///
    /// # Panics
    /// When a host has no process that was stopped.
    pub fn heal(self) {
        match self.way {
            Way::Kill => self.loss.hosts.iter().for_each(|host| self.lab[host].again()),
            Way::Stop => signal(self.lab, self.loss, Signal::SIGCONT),
            Way::Drop | Way::Reject => drop(self.guard),
        }
    }
}

fn signal(lab: &Lab, loss: &Loss, signal: Signal) {
    for host in &loss.hosts {
        let program = loss.program.unwrap_or("any program");
        let hit = lab[host].signal_to(loss.program, signal);
        assert!(hit > 0, "{signal} hit no process of {program} on {host}");
    }
}
