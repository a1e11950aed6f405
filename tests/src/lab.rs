//! A laboratory of network namespaces: hosts of their own on networks of their own, with real processes in them.
//!
//! Each host is a namespace with one interface, each network a bridge, and one router namespace joins the networks. It
//! passes on between networks only what goes to a host that is [public](Lab::public): everything else is as far away as
//! another company's network. What can go wrong between two hosts is made by [`Lab::partition`].
//!
//! Invariants: nothing of the machine's own network is touched, as every interface is made inside a namespace; names
//! bear the process's id, so that laboratories never meet; all is removed when the value is dropped, after a panic too,
//! and what a killed run has left is removed by the next one.

mod caller;
mod host;
pub mod mesh;
mod namespace;
mod partition;
mod relay;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::ExitStatus,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use self::namespace::{Namespace, run, sweep};
pub use self::{
    caller::{SOON, answers},
    host::{Host, Process, User},
    mesh::Mesh,
    partition::{Guard, Partition},
};
use crate::harness::Turn;

/// How many laboratories this process has had.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// The hosts of a network are numbered from here; 1 is the router.
const FIRST_HOST: u8 = 2;

/// A set of networks.
pub struct Lab {
    /// What all its names begin with.
    name: String,
    /// Ended first: the namespaces go once nothing runs in them.
    hosts: BTreeMap<String, Host>,
    networks: Vec<Network>,
    router: Namespace,
    _turn: Turn,
}

struct Network {
    name: String,
    next: u8,
}

/// The addresses of a host, which differ in their last number alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// `10.<network>.0.<host>`.
    pub v4: Ipv4Addr,
    /// `fd00:<network>::<host>`.
    pub v6: Ipv6Addr,
}

impl Addresses {
    fn of(network: usize, host: u8) -> Self {
        let network = u8::try_from(network + 81).expect("a few networks");
        Addresses {
            v4: Ipv4Addr::new(10, network, 0, host),
            v6: Ipv6Addr::new(0xfd00, network.into(), 0, 0, 0, 0, 0, host.into()),
        }
    }

    /// Both.
    pub fn all(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl Lab {
    /// An empty laboratory, once no other one runs.
    ///
    /// # Panics
    /// Where namespaces cannot be made; it says what is missing.
    pub async fn new() -> Self {
        let turn = Turn::take().await;
        namespace::check().unwrap_or_else(|remedy| panic!("the laboratory cannot be built: {remedy}"));
        sweep();
        let name = format!("weft-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let router = Namespace::make(&format!("{name}-router"));
        let forward = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
        forward.iter().for_each(|setting| router.sysctl(setting, "1"));
        // Where the kernel shows bridged packets to the firewall, it would hold neighbours to be strangers.
        for setting in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
            if Path::new("/proc/sys").join(setting).exists() {
                router.sysctl(setting, "0");
            }
        }
        router.nft(
            "table inet lab {
                set public4 { type ipv4_addr; }
                set public6 { type ipv6_addr; }
                chain forward {
                    type filter hook forward priority 0; policy drop;
                    ct state established,related accept
                    ip daddr @public4 accept
                    ip6 daddr @public6 accept
                }
            }\n",
        );
        Lab { name, hosts: BTreeMap::new(), networks: Vec::new(), router, _turn: turn }
    }

    /// Adds a network.
    pub fn network(&mut self, name: &str) {
        let router = Addresses::of(self.networks.len(), 1);
        // A bridge without an address of its own takes that of one of its ports, and another one when a host comes whose
        // port has a lower one: what its neighbours know of it is wrong then, for as long as they believe it.
        let own = format!("02:00:00:00:00:{:02x}", self.networks.len());
        self.router.ip(&format!(
            "link add {name} address {own} type bridge
             addr add {}/24 dev {name}
             addr add {}/64 dev {name} nodad
             link set {name} up\n",
            router.v4, router.v6
        ));
        self.networks.push(Network { name: name.to_owned(), next: FIRST_HOST });
    }

    /// Adds a host to a network.
    pub fn host(&mut self, network: &str, name: &str) -> &Host {
        let at = self.at(network);
        let own = Addresses::of(at, self.networks[at].next);
        let router = Addresses::of(at, 1);
        self.networks[at].next += 1;
        let namespace = Namespace::make(&format!("{}-{name}", self.name));
        let port = format!("p{}-{}", at, own.v4.octets()[3]);
        run(&format!(
            "ip link add eth0 netns {} type veth peer name {port} netns {}",
            namespace.name(),
            self.router.name()
        ));
        self.router.ip(&format!("link set {port} master {network} up\n"));
        namespace.ip(&format!(
            "addr add {}/24 dev eth0
             addr add {}/64 dev eth0 nodad
             link set lo up
             link set eth0 up
             route add default via {}
             route add default via {}\n",
            own.v4, own.v6, router.v4, router.v6
        ));
        let host = Host::start(name, network, own, namespace);
        self.hosts.insert(name.to_owned(), host);
        &self.hosts[name]
    }

    /// Whether there is a host of this name.
    pub fn has(&self, host: &str) -> bool {
        self.hosts.contains_key(host)
    }

    /// Lets the hosts of other networks begin connections with this one.
    pub fn public(&self, host: &str) {
        let Addresses { v4, v6 } = self[host].addresses;
        self.router.nft(&format!(
            "add element inet lab public4 {{ {v4} }}\nadd element inet lab public6 {{ {v6} }}\n"
        ));
    }

    /// What is to go wrong between two hosts, or between all hosts of a network and another host or network.
    ///
    /// # Panics
    /// When there is no host or network of such a name.
    pub fn partition(&self, a: &str, b: &str) -> Partition<'_> {
        Partition::between(self.group(a), self.group(b))
    }

    /// What is to go wrong between these hosts and all others.
    ///
    /// # Panics
    /// When there is no host of such a name.
    pub fn cut_off(&self, hosts: &[String]) -> Partition<'_> {
        let inside: Vec<_> = hosts.iter().map(|host| &self[host.as_str()]).collect();
        let outside = self.hosts.iter().filter(|(name, _)| !hosts.contains(name)).map(|(_, host)| host);
        Partition::between(inside, outside.collect())
    }

    /// What is to go wrong within a host, between who listens at a TCP port there and who calls it from there.
    ///
    /// # Panics
    /// When there is no host of this name.
    pub fn at_port(&self, host: &str, port: u16) -> Partition<'_> {
        Partition::at(&self[host], port)
    }

    fn group(&self, name: &str) -> Vec<&Host> {
        if let Some(host) = self.hosts.get(name) {
            return vec![host];
        }
        self.at(name);
        self.hosts.values().filter(|host| host.network == name).collect()
    }

    fn at(&self, network: &str) -> usize {
        let found = self.networks.iter().position(|one| one.name == network);
        found.unwrap_or_else(|| panic!("the laboratory has no host or network `{network}`"))
    }
}

impl std::ops::Index<&str> for Lab {
    type Output = Host;

    /// The host of this name.
    fn index(&self, name: &str) -> &Host {
        self.hosts.get(name).unwrap_or_else(|| panic!("the laboratory has no host `{name}`"))
    }
}

/// What a command said when it failed.
fn failed(command: &str, status: ExitStatus, said: &[u8]) -> String {
    format!("{command} failed ({status}): {}", String::from_utf8_lossy(said).trim())
}
