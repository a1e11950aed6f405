//! `TrafficPolicy`: how requests to a service are balanced, limited, retried.
//!
//! Every top-level field of the spec is a *group*: the narrowest policy that gives a group gives all of it,
//! and what it leaves out of the group has its default.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, TargetRef};

macro_rules! groups {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $name:literal,)*) => {
        /// What is said. In the Service's namespace: for all callers; elsewhere: for the callers of that namespace.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase", default, deny_unknown_fields)]
        pub struct TrafficPolicy {
            /// The Services; every one of the namespace (in `weft-system`: of the mesh) when empty.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            #[schemars(length(max = 16))]
            pub target_refs: Vec<TargetRef>,
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$type>,)*
        }

        /// What is meant: every group present, defaults resolved.
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct Effective {
            $($(#[$doc])* pub $field: $type,)*
        }

        /// Merges what was said, narrowest first: port, Service, namespace, mesh. Each group comes from the first that gives it.
        pub fn merge(narrowest_first: &[&TrafficPolicy]) -> Effective {
            Effective { $($field: narrowest_first.iter().find_map(|said| said.$field.clone()).unwrap_or_default(),)* }
        }

        /// For each group, by its name, the index of the policy that [`merge`] takes it from; `None` is the default.
        pub fn origins(narrowest_first: &[&TrafficPolicy]) -> Vec<(&'static str, Option<usize>)> {
            vec![$(($name, narrowest_first.iter().position(|said| said.$field.is_some())),)*]
        }
    };
}

groups! {
    /// Which endpoint of a priority.
    load_balancing: LoadBalancing = "loadBalancing",
    /// Which priority.
    locality: LocalityPolicy = "locality",
    /// When an endpoint is left out for a while.
    outlier_ejection: OutlierEjection = "outlierEjection",
    /// How much at a time, per proxy.
    limits: Limits = "limits",
    /// When a request is tried again.
    retry: Retry = "retry",
    /// How long anything may take.
    timeouts: Timeouts = "timeouts",
    /// Which connections are kept.
    keep_alive: KeepAlive = "keepAlive",
}

/// Which endpoint of a priority.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LoadBalancing {
    /// By which rule.
    pub policy: BalancePolicy,
    /// What HASH hashes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashOn>,
    /// How long a new endpoint is ramped up; 0s: not at all.
    pub slow_start: Duration,
}

/// The rule by which an endpoint is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum BalancePolicy {
    /// The less loaded of two taken at random.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// At random.
    Random,
    /// By consistent hashing (Maglev).
    Hash,
}

/// What HASH hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashOn {
    /// Of what.
    pub on: HashSource,
    /// Of a header, cookie or parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
    /// How long a cookie lives that is set when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
}

/// Of what a hash is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum HashSource {
    /// A request header.
    Header,
    /// A cookie.
    Cookie,
    /// The caller's address.
    Source,
    /// A query parameter.
    QueryParam,
}

/// Which priority an endpoint has, and how much of the load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LocalityPolicy {
    /// Labels that must match in turn; absent: this cluster's zone, this cluster's region, other clusters of
    /// the region, elsewhere, and within each the same network first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 6))]
    pub priority: Option<Vec<LocalityLabel>>,
    /// Where the load of a region goes when it is not healthy; to the nearest when absent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub failover: Vec<Failover>,
    /// Fixed shares instead of the nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub distribute: Vec<Distribute>,
    /// How many times the load of a healthy part it may carry before others help, in percent.
    #[schemars(range(min = 100, max = 1000))]
    pub overprovisioning_percent: u32,
    /// Below this healthy share of a priority its ejections are ignored; 0: never.
    #[schemars(range(min = 0, max = 100))]
    pub panic_percent: u32,
    /// What happens to endpoints of a cluster that has not been heard of for `staleAfter`.
    pub stale_endpoints: StaleEndpoints,
    /// When they count as stale.
    pub stale_after: Duration,
}

impl Default for LocalityPolicy {
    fn default() -> Self {
        LocalityPolicy {
            priority: None,
            failover: Vec::new(),
            distribute: Vec::new(),
            overprovisioning_percent: 140,
            panic_percent: 50,
            stale_endpoints: StaleEndpoints::Keep,
            stale_after: Duration::from_secs(300),
        }
    }
}

/// A label that localities are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LocalityLabel {
    /// The region.
    Region,
    /// The zone.
    Zone,
    /// The subzone.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// Where the load of a region goes when it is not healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failover {
    /// The callers' region.
    #[schemars(length(min = 1, max = 253))]
    pub from: String,
    /// The regions that stand in before any other.
    #[schemars(length(min = 1, max = 64))]
    pub to: Vec<String>,
}

/// Fixed shares for the callers of a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Distribute {
    /// The callers' `region` or `region/zone`.
    #[schemars(length(min = 1, max = 253))]
    pub from: String,
    /// Percent by `region` or `region/zone`; they sum to 100.
    #[schemars(extend("minProperties" = 1), inner(range(min = 0, max = 100)))]
    pub to: BTreeMap<String, u32>,
}

/// What happens to stale endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StaleEndpoints {
    /// They are used as before.
    #[default]
    Keep,
    /// They get a quarter of the load that they would get fresh.
    Deweight,
    /// They are not used.
    Drop,
}

/// When an endpoint is left out for a while. A count of 0 is off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct OutlierEjection {
    /// Failed connects, resets, 502, 503, 504 in a row.
    #[schemars(range(min = 0, max = 1000))]
    pub consecutive_gateway_errors: u32,
    /// Failed connects in a row.
    #[schemars(range(min = 0, max = 1000))]
    pub consecutive_connect_failures: u32,
    /// 5xx in a row; off by default, for one poisonous request must not move a cluster.
    #[schemars(range(min = 0, max = 1000))]
    pub consecutive_server_errors: u32,
    /// How often rates are judged and ejections end.
    pub interval: Duration,
    /// The first ejection; the nth is n times as long.
    pub base_ejection: Duration,
    /// The longest ejection.
    pub max_ejection: Duration,
    /// The greatest share of the endpoints.
    #[schemars(range(min = 0, max = 100))]
    pub max_ejected_percent: u32,
    /// Judged against the others; off when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
}

impl Default for OutlierEjection {
    fn default() -> Self {
        OutlierEjection {
            consecutive_gateway_errors: 5,
            consecutive_connect_failures: 3,
            consecutive_server_errors: 0,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
            success_rate: None,
        }
    }
}

/// An endpoint far below the mean of all is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct SuccessRate {
    /// Only with so many endpoints that had enough requests.
    #[schemars(range(min = 1, max = 10_000))]
    pub minimum_hosts: u32,
    /// Only endpoints with so many requests in an interval.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub request_volume: u32,
    /// So many standard deviations below the mean.
    #[schemars(range(min = 0.1, max = 10.0))]
    pub deviations: f64,
}

impl Default for SuccessRate {
    fn default() -> Self {
        SuccessRate { minimum_hosts: 5, request_volume: 100, deviations: 1.9 }
    }
}

/// How much at a time, per proxy, to all endpoints together. 0: no limit. What is over one is answered with 503 here, and
/// goes nowhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Limits {
    /// Open connections. A request that finds none free waits for one, for at most `timeouts.firstByte`.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub connections: u32,
    /// Requests under way, each until its answer has come to its end.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub requests: u32,
    /// Requests that wait for a connection, be it a new one or one that comes free.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub pending: u32,
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Retry {
    /// How many more tries; 0: none.
    #[schemars(range(min = 0, max = 10))]
    pub attempts: u32,
    /// After what.
    #[schemars(length(max = 8))]
    pub on: Vec<RetryOn>,
    /// After these HTTP statuses.
    #[schemars(length(max = 200), inner(range(min = 400, max = 599)))]
    pub statuses: Vec<u16>,
    /// After these gRPC statuses.
    #[schemars(length(max = 16))]
    pub grpc_statuses: Vec<GrpcStatus>,
    /// How long between two tries.
    pub backoff: Backoff,
    /// How many of all requests may be retries.
    pub budget: Budget,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            attempts: 2,
            on: vec![RetryOn::Reset, RetryOn::Refused, RetryOn::FirstByte],
            statuses: Vec::new(),
            grpc_statuses: vec![GrpcStatus::Unavailable],
            backoff: Backoff::default(),
            budget: Budget::default(),
        }
    }
}

/// After what a request is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RetryOn {
    /// The connection broke, or the peer said `weft-reset`, before the response head; idempotent methods.
    Reset,
    /// The peer said that the request was not processed; any method.
    Refused,
    /// The response head did not come within `timeouts.firstByte`; idempotent methods.
    FirstByte,
}

/// A gRPC status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum GrpcStatus {
    Cancelled = 1,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// How long between two tries: full jitter up to `base` doubled each time, at most `max`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Backoff {
    /// Before the first.
    pub base: Duration,
    /// Before any.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

/// How many of all requests may be retries (GEP-3388).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Budget {
    /// Of the requests in the window.
    #[schemars(range(min = 0, max = 100))]
    pub percent: u32,
    /// Always allowed.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub min_per_second: u32,
    /// Over which is counted.
    pub window: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { percent: 20, min_per_second: 10, window: Duration::from_secs(10) }
    }
}

/// How long anything may take. 0s: no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Timeouts {
    /// Connecting inside a network.
    pub connect: Duration,
    /// Connecting to another network.
    pub connect_remote: Duration,
    /// From the request to the response head, per try.
    pub first_byte: Duration,
    /// After which an endpoint without an answer gets no new requests but one probe at a time.
    pub suspect_after: Duration,
    /// The whole request.
    pub request: Duration,
    /// A connection without traffic. Those to other sidecars are closed after 50 min in any case, those to what has none
    /// after 20 s, and `0s` says no more than that.
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(1),
            connect_remote: Duration::from_secs(2),
            first_byte: Duration::from_secs(15),
            suspect_after: Duration::from_secs(1),
            request: Duration::ZERO,
            idle: Duration::from_secs(300),
        }
    }
}

/// Which connections are kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct KeepAlive {
    /// Idle ones per endpoint and worker thread.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_idle_per_endpoint: u32,
    /// Probes of the kernel.
    pub tcp: TcpKeepAlive,
}

impl Default for KeepAlive {
    fn default() -> Self {
        KeepAlive { max_idle_per_endpoint: 64, tcp: TcpKeepAlive::default() }
    }
}

/// Probes of the kernel on an idle connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TcpKeepAlive {
    /// Before the first.
    pub time: Duration,
    /// Between two.
    pub interval: Duration,
    /// Unanswered ones after which the connection is dead.
    #[schemars(range(min = 1, max = 100))]
    pub probes: u32,
}

impl Default for TcpKeepAlive {
    fn default() -> Self {
        TcpKeepAlive { time: Duration::from_secs(30), interval: Duration::from_secs(5), probes: 3 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_comes_whole_from_the_narrowest_that_gives_it() {
        let read = |text| serde_json::from_str::<TrafficPolicy>(text).unwrap();
        let service = read(r#"{"retry":{"attempts":1}}"#);
        let mesh = read(r#"{"retry":{"attempts":5,"statuses":[503]},"timeouts":{"request":"3s"}}"#);
        let effective = merge(&[&service, &mesh]);
        assert_eq!((effective.retry.attempts, effective.retry.statuses.len()), (1, 0));
        assert_eq!(effective.retry.budget, Budget::default());
        assert_eq!(effective.timeouts.request, Duration::from_secs(3));
        assert_eq!(origins(&[&service, &mesh])[4..6], [("retry", Some(0)), ("timeouts", Some(1))]);
        assert_eq!(merge(&[]), Effective::default());
    }
}
