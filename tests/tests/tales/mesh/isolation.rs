//! Two clusters on one machine have nothing in common but one connection.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    time::Duration,
};

use weft_tests::harness::{Mesh, eventually, up::Cluster};

use super::BLOCKS;

#[tokio::test(flavor = "multi_thread")]
async fn clusters_share_one_connection_and_no_file() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let [east, west] = ["east", "west"].map(|name| mesh.cluster(name));
    for (own, other) in [(&east, &west), (&west, &east)] {
        let foreign = mesh.dir().join(&other.name);
        for pid in processes(own) {
            let opened: Vec<_> = files(pid).into_iter().filter(|file| file.starts_with(&foreign)).collect();
            assert!(opened.is_empty(), "process {pid} of {} opens {opened:?}", own.name);
        }
    }
    let ends = [mesh.block(), mesh.block() + 1].map(|block| Ipv4Addr::new(127, block, 0, 1));
    // Connections of a moment ago, such as the join, may still be about to end.
    eventually("the control planes share exactly one connection", Duration::from_secs(10), async || {
        let shared: Vec<_> = established()
            .into_iter()
            .filter(|(local, remote)| *local.ip() == ends[1] && *remote.ip() == ends[0])
            .collect();
        if shared.len() == 1 { Ok(()) } else { Err(format!("{shared:?}")) }
    })
    .await;
}

fn processes(cluster: &Cluster) -> Vec<i32> {
    let gateways = [cluster.gateway_pids.ingress, cluster.gateway_pids.eastwest, cluster.controlplane_pid];
    cluster.workloads.iter().flat_map(|one| [one.pid, one.sidecar_pid]).chain(gateways).collect()
}

fn files(pid: i32) -> Vec<PathBuf> {
    let opened = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is alive");
    opened.flatten().filter_map(|file| fs::read_link(file.path()).ok()).collect()
}

/// Local and remote end of every established TCP connection over IPv4: the second and third column of the
/// kernel's table, state 01 in the fourth.
fn established() -> Vec<(SocketAddrV4, SocketAddrV4)> {
    let table = fs::read_to_string("/proc/net/tcp").expect("Linux");
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(3) == Some(&"01"))
        .filter_map(|row| Some((end(row[1])?, end(row[2])?)))
        .collect()
}

fn end(text: &str) -> Option<SocketAddrV4> {
    let (ip, port) = text.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?.swap_bytes();
    Some(SocketAddrV4::new(ip.into(), u16::from_str_radix(port, 16).ok()?))
}
