//! A status as people read it. Pure: the time is an argument.

use std::fmt::Write;

use api::admin::{ClusterStatus, CommitState, ProxyState, Role, SourceStatus, Status};

use crate::{
    check::render_problem,
    duration::short,
    output::{Cell, Style, Table, Tone, clock, line, short_commit},
};

/// How many commits and events are of interest at a glance.
const GLANCE: usize = 8;

/// `status` at the time `now`, seconds since the epoch.
pub(super) fn render(status: &Status, now: f64, style: Style) -> String {
    let commit = status.commit.as_deref().map_or("none yet".into(), short_commit);
    let mesh = match status.trust_domain.as_str() {
        "" => "mesh without a commit in force".to_owned(),
        domain => format!("mesh {domain} at commit {commit}"),
    };
    let mut out = format!("{mesh}, as {} ({}) knows it\n", status.cluster, role(status.role));
    for source in &status.sources {
        let title = title(source, status.sources.len() == 1);
        let _ = writeln!(out, "\n{}", style.paint(Tone::Strong, &title));
        out.push_str(&commits(source, now, style));
    }
    let mut section = |title: &str, text: String| {
        if !text.is_empty() {
            let _ = write!(out, "\n{}\n{text}", style.paint(Tone::Strong, title));
        }
    };
    section("clusters", clusters(&status.clusters, now, style));
    section("proxies", proxies(&status.clusters, now, style));
    section("services, as each cluster's callers see them", services(&status.clusters, now, style));
    section("lately", events(status));
    out
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Remote => "remote",
    }
}

/// What the only source is called, or one of several, with what it owns and has in force.
fn title(source: &SourceStatus, is_sole: bool) -> String {
    let place = format!("{} in {}", source.branch, source.repository);
    if is_sole {
        return format!("commits of {place}");
    }
    let owns = match source.namespaces.as_slice() {
        [] => "the rest".to_owned(),
        own => own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let in_force = source.commit.as_deref().map_or("nothing".into(), short_commit);
    format!("source {} (owns {owns}), with {in_force} in force: commits of {place}", source.name)
}

fn commits(source: &SourceStatus, now: f64, style: Style) -> String {
    let mut out = source.trouble.as_ref().map_or(String::new(), |trouble| {
        let since =
            source.trouble_since.map_or(String::new(), |since| format!(" for {}", short(now - since)));
        let said = format!("trouble{since}: {trouble}; the last good commit stays in force");
        format!("  {}\n", style.paint(Tone::Bad, &said))
    });
    let newest = &source.commits[source.commits.len().saturating_sub(GLANCE)..];
    let mut table = Table::new(["COMMIT", "STATE", "AFTER", "SEEN", "BY", "SUBJECT"]).without(["BY", "SEEN"]);
    for commit in newest.iter().rev() {
        let (word, tone) = state(commit.state);
        table.row([
            short_commit(&commit.commit).into(),
            Cell::toned(tone, word),
            commit.effective_after_ms.map_or("-".to_owned(), |ms| format!("{ms} ms")).into(),
            format!("{} ago", short(now - commit.seen)).into(),
            commit.author.split('<').next().unwrap_or_default().trim().into(),
            commit.subject.as_str().into(),
        ]);
    }
    out.push_str(&table.render(style));
    for commit in newest.iter().rev() {
        let (word, warnings) = match commit.state {
            CommitState::Superseded => ("refused", &[][..]),
            CommitState::Refused => ("refused", &commit.warnings[..]),
            _ => ("taken with warnings", &commit.warnings[..]),
        };
        let problems: String = commit.errors.iter().chain(warnings).map(render_problem).collect();
        if !problems.is_empty() {
            let _ = writeln!(out, "  {} was {word}:", short_commit(&commit.commit));
        }
        for line in problems.lines() {
            let _ = writeln!(out, "    {line}");
        }
    }
    out
}

fn state(state: CommitState) -> (&'static str, Tone) {
    match state {
        CommitState::Accepted => ("accepted", Tone::Strong),
        CommitState::Refused => ("refused", Tone::Bad),
        CommitState::Rolling => ("rolling", Tone::Strong),
        CommitState::Effective => ("effective", Tone::Good),
        CommitState::Held => ("held", Tone::Bad),
        CommitState::Superseded => ("superseded", Tone::Faint),
    }
}

fn clusters(clusters: &[ClusterStatus], now: f64, style: Style) -> String {
    let mut table = Table::new([
        "CLUSTER",
        "ROLE",
        "LOCALITY",
        "COMMIT",
        "EFFECTIVE",
        "PROXIES",
        "LINK",
        "CA ENDS",
        "VERSION",
    ])
    .without(["VERSION", "LOCALITY", "CA ENDS", "ROLE"]);
    for cluster in clusters {
        let there = cluster.proxies.iter().filter(|proxy| proxy.state == ProxyState::Connected).count();
        let link = match (cluster.away_since, cluster.primary_away_since, cluster.role) {
            (Some(since), _, _) => Cell::toned(Tone::Bad, format!("away for {}", short(now - since))),
            (_, Some(since), _) => Cell::toned(Tone::Bad, format!("primary away for {}", short(now - since))),
            _ if cluster.store_away_since.is_some() => {
                let since = cluster.store_away_since.unwrap_or(now);
                Cell::toned(Tone::Bad, format!("store away for {}", short(now - since)))
            }
            (_, _, Role::Primary) => "-".into(),
            (_, _, Role::Remote) => Cell::toned(Tone::Good, "up"),
        };
        table.row([
            Cell::toned(Tone::Strong, cluster.name.as_str()),
            role(cluster.role).into(),
            cluster.locality.to_string().into(),
            cluster.commit.as_deref().map_or("-".into(), short_commit).into(),
            yes(cluster.effective),
            Cell::judged(there == cluster.proxies.len(), format!("{there}/{}", cluster.proxies.len())),
            link,
            match cluster.intermediate_not_after {
                0.0 => "-".into(), // not heard of yet
                end if end > now => format!("in {}", short(end - now)).into(),
                _ => Cell::toned(Tone::Bad, "ended"),
            },
            if cluster.version.is_empty() { "-" } else { &cluster.version }.into(),
        ]);
    }
    table.render(style)
}

fn proxies(clusters: &[ClusterStatus], now: f64, style: Style) -> String {
    let mut table = Table::new([
        "PROXY",
        "KIND",
        "ACCOUNT",
        "ADDRESS",
        "STATE",
        "SINCE",
        "COMMIT",
        "EFFECTIVE",
        "APP",
        "CERTIFICATE",
    ])
    .without(["ADDRESS", "KIND", "ACCOUNT", "CERTIFICATE", "SINCE"]);
    let mut notes = String::new();
    for proxy in clusters.iter().flat_map(|cluster| &cluster.proxies) {
        let state = match (proxy.state, proxy.draining) {
            (ProxyState::Connected, true) => Cell::toned(Tone::Strong, "draining"),
            (ProxyState::Connected, false) => Cell::toned(Tone::Good, "connected"),
            (ProxyState::Away, _) => Cell::toned(Tone::Bad, "away"),
            (ProxyState::Gone, _) => Cell::toned(Tone::Bad, "gone"),
        };
        let app = match (proxy.kind.as_str(), proxy.app_ready) {
            ("sidecar", ready) => Cell::judged(ready, if ready { "up" } else { "down" }),
            _ => "-".into(),
        };
        table.row([
            proxy.workload.as_str().into(),
            proxy.kind.as_str().into(),
            format!("{}/{}", proxy.namespace, proxy.service_account).into(),
            proxy.address.as_str().into(),
            state,
            short(now - proxy.since).into(),
            proxy.commit.as_deref().map_or("-".into(), short_commit).into(),
            yes(proxy.effective),
            app,
            match proxy.certificate_not_after {
                0.0 => "-".into(), // it has not said since the control plane began
                end if end > now => short(end - now).into(),
                _ => Cell::toned(Tone::Bad, "expired"),
            },
        ]);
        for reason in &proxy.refused {
            let _ = writeln!(notes, "  {} refused: {}", proxy.workload, line(reason));
        }
        for (endpoint, reason) in &proxy.ejected {
            let _ = writeln!(notes, "  {} avoids {}: {}", proxy.workload, line(endpoint), line(reason));
        }
    }
    table.render(style) + &notes
}

fn services(clusters: &[ClusterStatus], now: f64, style: Style) -> String {
    let mut table = Table::new(["IN", "SERVICE", "EXPORTED", "ENDPOINTS"]);
    for cluster in clusters {
        for service in &cluster.services {
            let endpoints = service.endpoints.iter().map(|(from, count)| {
                let stale =
                    service.stale_since.get(from).map(|since| format!(" (stale for {})", short(now - since)));
                format!("{from} {}/{}{}", count.healthy, count.total, stale.unwrap_or_default())
            });
            let healthy = service.endpoints.values().any(|count| count.healthy > 0);
            let endpoints = endpoints.collect::<Vec<_>>().join(", ");
            table.row([
                cluster.name.as_str().into(),
                service.service.to_string().into(),
                if service.exported { "yes" } else { "no" }.into(),
                match endpoints.as_str() {
                    "" => Cell::toned(Tone::Bad, "none"),
                    text if healthy => text.into(),
                    text => Cell::toned(Tone::Bad, text),
                },
            ]);
        }
    }
    table.render(style)
}

fn events(status: &Status) -> String {
    let newest = &status.events[status.events.len().saturating_sub(GLANCE)..];
    let width = newest.iter().map(|event| event.subject.chars().count()).max().unwrap_or(0);
    newest
        .iter()
        .rev()
        .map(|event| {
            let (subject, message) = (line(&event.subject), line(&event.message));
            format!("  {}  {subject:width$}  {message}\n", clock(event.time))
        })
        .collect()
}

fn yes(effective: bool) -> Cell {
    Cell::judged(effective, if effective { "yes" } else { "no" })
}
