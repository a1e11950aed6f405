//! `weft status`: what one control plane knows of the mesh.

mod text;

use std::process::ExitCode;

use api::{admin::Status, name::ClusterName};
use clap::Args;

use crate::{
    Global,
    mesh::Mesh,
    output::{Output, now},
};

/// Show clusters, commits, proxies, services, certificates, and what happened lately
#[derive(Args)]
#[command(after_help = "Examples:
  weft status
  weft status --cluster west                  as west sees it, also while the primary is away
  weft status --output json | jq '.clusters[].proxies[] | select(.effective | not)'")]
pub(crate) struct Show {
    /// Ask this cluster's control plane instead of the primary's
    #[arg(long)]
    cluster: Option<ClusterName>,
}

pub(crate) async fn run(show: Show, global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let status: Status = Mesh::find(global)?.client(show.cluster.as_ref())?.get("/status").await?;
    output.answer(&status, |status, style| text::render(status, now(), style))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use api::admin::*;
    use expect_test::expect;

    use super::text::render;
    use crate::output::Style;

    /// One cluster with one proxy and one service, all well, at time 1000.
    pub(crate) fn sample() -> Status {
        let proxy = ProxyStatus {
            workload: "east-front-1".parse().unwrap(),
            instance: "east-front-1-abc".into(),
            kind: "sidecar".into(),
            namespace: "shop".parse().unwrap(),
            service_account: "front".parse().unwrap(),
            address: "127.1.0.11:15006".into(),
            state: ProxyState::Connected,
            since: 940.0,
            commit: Some("1a2b3c4d5e".into()),
            effective: true,
            refused: Vec::new(),
            app_ready: true,
            draining: false,
            certificate_not_after: 87_400.0,
            version: "0.1.0".into(),
            ejected: BTreeMap::new(),
        };
        let service = ServiceStatus {
            service: "shop/front".parse().unwrap(),
            exported: true,
            endpoints: BTreeMap::from([("east".parse().unwrap(), EndpointCount { healthy: 1, total: 2 })]),
            stale_since: BTreeMap::new(),
        };
        let cluster = ClusterStatus {
            name: "east".parse().unwrap(),
            role: Role::Primary,
            locality: "eu-east/a".parse().unwrap(),
            network: "east".into(),
            version: "0.1.0".into(),
            commit: Some("1a2b3c4d5e".into()),
            effective: true,
            primary_away_since: None,
            store_away_since: None,
            proxies_unknown_until: None,
            away_since: None,
            reported: 1000.0,
            intermediate_not_after: 7_777_000.0,
            certificate_not_after: 87_400.0,
            bundle_sequence: 1,
            proxies: vec![proxy],
            services: vec![service],
        };
        Status {
            cluster: "east".parse().unwrap(),
            role: Role::Primary,
            trust_domain: "shop.example".into(),
            sources: vec![SourceStatus {
                name: "main".parse().unwrap(),
                namespaces: vec![],
                commit: Some("1a2b3c4d5e".into()),
                repository: "/srv/config".into(),
                branch: "main".into(),
                trouble: None,
                trouble_since: None,
                commits: vec![CommitStatus {
                    commit: "1a2b3c4d5e".into(),
                    subject: "The shop, as it comes".into(),
                    author: "Ada <ada@shop.example>".into(),
                    seen: 900.0,
                    state: CommitState::Effective,
                    effective_after_ms: Some(41),
                    errors: Vec::new(),
                    warnings: Vec::new(),
                }],
            }],
            commit: Some("1a2b3c4d5e".into()),
            clusters: vec![cluster],
            events: vec![Event { time: 950.0, subject: "proxy east-front-2".into(), message: "gone".into() }],
        }
    }

    #[test]
    fn the_whole_mesh_at_a_glance() {
        expect![[r#"
            mesh shop.example at commit 1a2b3c4, as east (primary) knows it

            commits of main in /srv/config
              COMMIT   STATE      AFTER  SEEN       BY   SUBJECT
              1a2b3c4  effective  41 ms  1m40s ago  Ada  The shop, as it comes

            clusters
              CLUSTER  ROLE     LOCALITY   COMMIT   EFFECTIVE  PROXIES  LINK  CA ENDS  VERSION
              east     primary  eu-east/a  1a2b3c4  yes        1/1      -     in 90d   0.1.0

            proxies
              PROXY         KIND     ACCOUNT     ADDRESS           STATE      SINCE  COMMIT   EFFECTIVE  APP  CERTIFICATE
              east-front-1  sidecar  shop/front  127.1.0.11:15006  connected  1m0s   1a2b3c4  yes        up   1d0h

            services, as each cluster's callers see them
              IN    SERVICE     EXPORTED  ENDPOINTS
              east  shop/front  yes       east 1/2

            lately
              00:15:50Z  proxy east-front-2  gone
        "#]]
        .assert_eq(&render(&sample(), 1000.0, Style::PLAIN));
    }

    #[test]
    fn each_of_several_sources_says_what_it_owns_and_has_in_force() {
        let mut status = sample();
        let commit = "platform@1a2b3c4d5e shop@9f8e7d6c5b".to_owned();
        let shop = SourceStatus {
            name: "shop".parse().unwrap(),
            namespaces: vec!["shop".parse().unwrap(), "till".parse().unwrap()],
            commit: Some("9f8e7d6c5b".into()),
            repository: "https://git.example/shop.git".into(),
            trouble: Some("no connection".into()),
            trouble_since: Some(970.0),
            commits: vec![],
            ..status.sources[0].clone()
        };
        status.sources[0].name = "platform".parse().unwrap();
        status.sources.push(shop);
        (status.commit, status.clusters[0].commit) = (Some(commit.clone()), Some(commit));
        let text = render(&status, 1000.0, Style::PLAIN);
        let until = text.find("\nproxies").unwrap();
        expect![[r#"
            mesh shop.example at commit platform@1a2b3c4 shop@9f8e7d6, as east (primary) knows it

            source platform (owns the rest), with 1a2b3c4 in force: commits of main in /srv/config
              COMMIT   STATE      AFTER  SEEN       BY   SUBJECT
              1a2b3c4  effective  41 ms  1m40s ago  Ada  The shop, as it comes

            source shop (owns shop, till), with 9f8e7d6 in force: commits of main in https://git.example/shop.git
              trouble for 30s: no connection; the last good commit stays in force

            clusters
              CLUSTER  ROLE     LOCALITY   COMMIT                         EFFECTIVE  PROXIES  LINK  CA ENDS  VERSION
              east     primary  eu-east/a  platform@1a2b3c4 shop@9f8e7d6  yes        1/1      -     in 90d   0.1.0
        "#]]
        .assert_eq(&text[..until]);
    }

    #[test]
    fn what_is_wrong_is_said_where_it_is() {
        let mut status = sample();
        let source = &mut status.sources[0];
        source.trouble = Some("the branch `main` is gone".into());
        source.trouble_since = Some(970.0);
        source.commits[0].state = CommitState::Refused;
        source.commits[0].effective_after_ms = None;
        source.commits[0].errors = vec![Problem {
            file: "policy.yaml".into(),
            line: 3,
            column: 9,
            message: "unknown name `souce`".into(),
            help: None,
            severity: Severity::Error,
        }];
        let cluster = &mut status.clusters[0];
        cluster.primary_away_since = Some(880.0);
        cluster.proxies[0].refused = vec!["policy/shop/a: level 2 is above mine".into()];
        cluster.proxies[0].ejected = BTreeMap::from([("east-ratings-1".into(), "5 gateway errors".into())]);
        let text = render(&status, 1000.0, Style::PLAIN);
        for line in [
            "  trouble for 30s: the branch `main` is gone; the last good commit stays in force",
            "    policy.yaml:3:9: unknown name `souce`",
            "primary away for 2m0s",
            "  east-front-1 refused: policy/shop/a: level 2 is above mine",
            "  east-front-1 avoids east-ratings-1: 5 gateway errors",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_certificate_that_nobody_has_told_of_is_none_that_has_expired() {
        let mut status = sample();
        status.clusters[0].proxies[0].certificate_not_after = 0.0;
        assert!(!render(&status, 1000.0, Style::PLAIN).contains("expired"));
        status.clusters[0].proxies[0].certificate_not_after = 999.0;
        assert!(render(&status, 1000.0, Style::PLAIN).contains("expired"));
    }

    #[test]
    fn what_others_wrote_fakes_no_line() {
        let mut status = sample();
        status.sources[0].commits[0].subject = "good\n  0000000  effective".into();
        status.sources[0].trouble = Some("away\x1b[1A".into());
        status.clusters[0].proxies[0].refused = vec!["level 2\nproxies\x1b]0;x\x07".into()];
        status.clusters[0].proxies[0].ejected = BTreeMap::from([("a\nb".into(), "c\rd".into())]);
        status.events[0].message = "gone\nlately".into();
        let text = render(&status, 1000.0, Style::PLAIN);
        assert!(!text.contains(|one: char| one.is_control() && one != '\n'), "{text:?}");
        for line in [
            "  1a2b3c4  effective  41 ms  1m40s ago  Ada  good   0000000  effective",
            "  east-front-1 refused: level 2 proxies\u{fffd}]0;x\u{fffd}",
            "  east-front-1 avoids a b: c d",
            "  00:15:50Z  proxy east-front-2  gone lately",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_was_warned_of_stands_beside_the_commit_until_another_takes_its_place() {
        let mut status = sample();
        let taken = &mut status.sources[0].commits[0];
        taken.warnings = vec![Problem {
            file: "route.yaml".into(),
            line: 7,
            column: 22,
            message: "there is no Service `shop/gone`".into(),
            help: Some("did you mean `zone`?".into()),
            severity: Severity::Warning,
        }];
        let before =
            CommitStatus { state: CommitState::Superseded, commit: "0badf00d".into(), ..taken.clone() };
        status.sources[0].commits.insert(0, before);
        let text = render(&status, 1000.0, Style::PLAIN);
        let (from, until) = (text.find("commits of").unwrap(), text.find("\nclusters").unwrap());
        expect![[r#"
            commits of main in /srv/config
              COMMIT   STATE       AFTER  SEEN       BY   SUBJECT
              1a2b3c4  effective   41 ms  1m40s ago  Ada  The shop, as it comes
              0badf00  superseded  41 ms  1m40s ago  Ada  The shop, as it comes
              1a2b3c4 was taken with warnings:
                route.yaml:7:22: warning: there is no Service `shop/gone`
                  did you mean `zone`?
        "#]]
        .assert_eq(&text[from..until]);
    }

    #[test]
    fn of_a_cluster_that_was_not_heard_of_nothing_is_made_up() {
        let mut status = sample();
        let cluster = &mut status.clusters[0];
        (cluster.intermediate_not_after, cluster.away_since, cluster.commit) = (0.0, Some(940.0), None);
        cluster.version.clear();
        cluster.proxies.clear();
        let text = render(&status, 1000.0, Style::PLAIN);
        let row = text.lines().find(|line| line.starts_with("  east ")).unwrap();
        expect!["  east     primary  eu-east/a  -       yes        0/0      away for 1m0s  -        -"]
            .assert_eq(row);
    }
}
