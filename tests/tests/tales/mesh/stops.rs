//! What hangs delays the requests of two seconds, not of a whole timeout.

use std::time::Duration;

use nix::sys::signal::Signal;
use weft_tests::harness::{Load, Mesh, client::clusters_of, up::Workload};

use super::BLOCKS;

const GETS_PER_SECOND: u32 = 200;
const ORDERS_PER_SECOND: u32 = 50;
/// Only what is sent within this time may be late. Each caller bears silence for a second, from its own first request on,
/// which may come late: the ingress prefers the front that was quicker, until enough requests hang behind that one.
const SUSPICION: Duration = Duration::from_secs(1 + 1);
/// What a front's first answer takes is forgotten to a seventh after so many requests, so that both have a share.
const WARM_UP: usize = 10 * ROW;
/// What was sent so shortly before may be under way still, and hang as well.
const UNDER_WAY: Duration = Duration::from_millis(200);
/// What no healthy request takes here; below the shortest time in which a hung endpoint could matter.
const USUAL: Duration = Duration::from_millis(900);
/// The sample's `firstByte` for reviews, and what the rest of a request takes.
const FIRST_BYTE: Duration = Duration::from_millis(3000 + 900);
const RETURN_LIMIT: Duration = Duration::from_secs(90);
const ROW: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn hung_applications_delay_the_requests_of_two_seconds() {
    hang("applications", |one| one.pid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_sidecars_delay_the_requests_of_two_seconds() {
    hang("sidecars", |one| one.sidecar_pid).await;
}

async fn hang(what: &str, pid: impl Fn(&Workload) -> i32) {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let load = Load::start(&mesh.cluster("east").ingress, GETS_PER_SECOND, ORDERS_PER_SECOND);
    load.more(WARM_UP).await;
    let reviews = mesh.workloads("east", "reviews");

    let stopped = load.mark(&format!("SIGSTOP of the {what} of all of east's reviews"));
    reviews.iter().for_each(|one| mesh.signal(pid(one), Signal::SIGSTOP));
    let west = |hops: &[_]| !clusters_of(hops, "reviews").contains("east");
    load.until("west serves the reviews", Duration::from_secs(20), ROW, west).await;
    load.more(ROW * 10).await;
    load.mark("SIGCONT");
    reviews.iter().for_each(|one| mesh.signal(pid(one), Signal::SIGCONT));
    let east = |hops: &[_]| !clusters_of(hops, "reviews").contains("west");
    load.until("the reviews come from east again", RETURN_LIMIT, ROW, east).await;

    let tally = load.stop().await;
    tally.report(&format!("{what} stopped"));
    tally.no_get_failed().no_order_twice(&mesh.orders()).late_only_in(
        &[(stopped - UNDER_WAY, stopped + SUSPICION)],
        USUAL,
        FIRST_BYTE,
    );
}
