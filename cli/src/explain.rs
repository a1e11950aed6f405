//! `weft explain`: what would happen to a request, and which line of which commit says so.

use std::{collections::BTreeMap, fmt::Write, process::ExitCode};

use api::{
    admin::{ExplainAnswer, ExplainRequest},
    name::ClusterName,
};
use clap::Args;
use serde_json::Value;

use crate::{
    Global,
    mesh::Mesh,
    output::{Cell, Output, Style, Table, Tone, line, short_commit},
};

/// Lines of settings are no longer than this, however wide the terminal is.
const WIDEST: usize = 100;
/// What stands before and after the fields of a line of settings.
const INDENT: usize = 6;

/// Explain what would happen to a request: route, endpoints, verdict, and the line that says so
#[derive(Args)]
#[command(after_help = "Examples:
  weft explain --from east-front-1 GET reviews:8080 /reviews
  weft explain --from shop/ratings GET reviews.shop:8080 /reviews -H 'x-user: ada'
  weft explain --from ingress --cluster west GET shop.example /")]
pub(crate) struct Explain {
    /// The caller: a workload's id, `namespace/serviceaccount`, or `ingress` for a client of the ingress
    #[arg(long, value_name = "CALLER")]
    from: String,
    /// The caller's cluster; otherwise the one whose API answers
    #[arg(long)]
    cluster: Option<ClusterName>,
    /// GET, POST, ...
    method: String,
    /// As the caller writes it: `reviews`, `reviews.shop:8080`; for the ingress the Host header
    host: String,
    /// With its query
    path: String,
    /// A request header
    #[arg(short = 'H', long = "header", value_parser = header, value_name = "NAME: VALUE")]
    headers: Vec<(String, String)>,
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        }
        _ => Err(format!("`{text}` is no header: write 'name: value'")),
    }
}

pub(crate) async fn run(explain: Explain, global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let client = Mesh::find(global)?.client(explain.cluster.as_ref())?;
    let request = ExplainRequest {
        cluster: explain.cluster,
        source: explain.from,
        method: explain.method,
        host: explain.host,
        path: explain.path,
        headers: joined(explain.headers),
    };
    let answer: ExplainAnswer = client.post("/explain", &request).await?;
    output.answer(&answer, |answer, style| text(&request, answer, style))?;
    Ok(ExitCode::SUCCESS)
}

/// Repeated headers read as one, their values joined (RFC 9110, section 5.3).
fn joined(headers: Vec<(String, String)>) -> BTreeMap<String, String> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        map.entry(name).and_modify(|values| *values += &format!(",{value}")).or_insert(value);
    }
    map
}

fn text(request: &ExplainRequest, answer: &ExplainAnswer, style: Style) -> String {
    let mut out = String::new();
    let tone = if answer.status < 400 { Tone::Good } else { Tone::Bad };
    let status = style.paint(tone, &answer.status.to_string());
    let commit = answer.commit.as_deref().map_or("no commit".into(), short_commit);
    let ExplainRequest { source, method, host, path, .. } = request;
    let _ = writeln!(out, "{method} {host} {path} from {source}: {status}, by commit {commit}");
    if let Some(reason) = &answer.reason {
        let _ = writeln!(out, "  {}", line(reason));
    }
    if !answer.unknown.is_empty() {
        let unknown = line(&answer.unknown.join(", "));
        let _ = writeln!(
            out,
            "  not certain: policies on the way read {unknown}, which is not known here and was taken to be empty"
        );
    }
    if let Some(route) = &answer.route {
        let _ = writeln!(out, "\n{}", style.paint(Tone::Strong, "route"));
        let _ = writeln!(
            out,
            "  {}, rule {}\n  {}:{} ({})",
            line(&route.route),
            line(&route.rule),
            line(&route.file),
            route.line,
            short_commit(&route.commit)
        );
    }
    for backend in &answer.backends {
        let percent = (backend.percent * 10.0).round() / 10.0;
        let heading = format!("to {}, {percent} % of the requests", backend.service);
        let _ = writeln!(out, "\n{}", style.paint(Tone::Strong, &heading));
        let mut table =
            Table::new(["PRIORITY", "LOAD", "ENDPOINT", "CLUSTER", "LOCALITY", "ADDRESS", "HEALTH", "VIA"])
                .without(["LOCALITY", "ADDRESS", "VIA"]);
        for priority in &backend.priorities {
            for endpoint in &priority.endpoints {
                table.row([
                    priority.priority.to_string().into(),
                    format!("{} %", priority.load_percent).into(),
                    Cell::toned(Tone::Strong, &endpoint.workload),
                    endpoint.cluster.as_str().into(),
                    endpoint.locality.as_str().into(),
                    endpoint.address.as_str().into(),
                    Cell::judged(endpoint.health == "healthy", &endpoint.health),
                    endpoint.via.join(", ").into(),
                ]);
            }
        }
        out.push_str(&table.render(style));
    }
    if !answer.authorization.is_empty() {
        let _ = writeln!(out, "\n{}", style.paint(Tone::Strong, "authorization"));
        let mut table = Table::new(["AT", "VERDICT", "POLICY", "RULE", "WHERE", "COMMIT"])
            .without(["COMMIT", "RULE", "AT"]);
        for verdict in &answer.authorization {
            let place = match verdict.file.as_str() {
                "" => "-".to_owned(),
                file => format!("{file}:{}", verdict.line),
            };
            table.row([
                verdict.at.as_str().into(),
                Cell::judged(verdict.allowed, if verdict.allowed { "allow" } else { "deny" }),
                verdict.policy.as_str().into(),
                verdict.rule.as_str().into(),
                place.into(),
                short_commit(&verdict.commit).into(),
            ]);
        }
        out.push_str(&table.render(style));
    }
    if !answer.settings.is_empty() {
        let _ = writeln!(out, "\n{}", style.paint(Tone::Strong, "settings"));
        for (group, setting) in &answer.settings {
            let origin = style.paint(Tone::Faint, &format!("({})", setting.origin));
            let _ = writeln!(out, "  {} {origin}", line(group));
            for said in wrapped(&setting.value, style.columns.unwrap_or(usize::MAX).min(WIDEST)) {
                let _ = writeln!(out, "    {}", line(&said));
            }
        }
    }
    out
}

/// A group of settings as configuration writes it, a field after the other in lines of at most `columns`.
fn wrapped(value: &str, columns: usize) -> Vec<String> {
    let fields = match serde_json::from_str(value) {
        Ok(Value::Object(fields)) => fields,
        _ => return vec![value.to_owned()],
    };
    let mut lines: Vec<String> = Vec::new();
    for (name, value) in &fields {
        let field = format!("{name}: {}", flow(value));
        match lines.last_mut() {
            Some(line) if line.chars().count() + field.chars().count() + INDENT <= columns => {
                *line += &format!(", {field}");
            }
            _ => lines.push(field),
        }
    }
    lines
}

/// YAML on one line.
fn flow(value: &Value) -> String {
    match value {
        Value::Object(fields) if fields.is_empty() => "{}".to_owned(),
        Value::Object(fields) => {
            let fields: Vec<_> =
                fields.iter().map(|(name, value)| format!("{name}: {}", flow(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::String(text) => text.clone(),
        scalar => scalar.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use api::admin::{
        ExplainedBackend, ExplainedEndpoint, ExplainedPriority, ExplainedRoute, ExplainedVerdict,
    };
    use expect_test::expect;

    use super::*;

    #[test]
    fn an_explanation_reads_from_the_answer_down_to_its_reasons() {
        let request = ExplainRequest {
            source: "shop/front".into(),
            method: "GET".into(),
            host: "reviews".into(),
            path: "/reviews".into(),
            ..ExplainRequest::default()
        };
        let answer = ExplainAnswer {
            commit: Some("1a2b3c4d5e".into()),
            status: 403,
            route: Some(ExplainedRoute {
                route: "HTTPRoute shop/reviews".into(),
                rule: "canary".into(),
                file: "reviews.yaml".into(),
                line: 7,
                commit: "9f8e7d6c5b".into(),
            }),
            backends: vec![ExplainedBackend {
                service: "shop/reviews-v1:8080".into(),
                percent: 90.0,
                priorities: vec![ExplainedPriority {
                    priority: 0,
                    load_percent: 100,
                    endpoints: vec![ExplainedEndpoint {
                        workload: "east-reviews-v1-1".into(),
                        cluster: "east".into(),
                        address: "127.1.0.15:15006".into(),
                        locality: "eu-east/a".into(),
                        health: "healthy".into(),
                        via: Vec::new(),
                    }],
                }],
            }],
            authorization: vec![ExplainedVerdict {
                at: "shop/reviews-v1".into(),
                allowed: false,
                policy: "shop/reviews-readers".into(),
                rule: "front".into(),
                file: "policy.yaml".into(),
                line: 3,
                commit: "9f8e7d6c5b".into(),
            }],
            reason: Some("denied by shop/reviews-readers".into()),
            unknown: vec!["source.ip".into()],
            settings: BTreeMap::new(),
        };
        expect![[r#"
            GET reviews /reviews from shop/front: 403, by commit 1a2b3c4
              denied by shop/reviews-readers
              not certain: policies on the way read source.ip, which is not known here and was taken to be empty

            route
              HTTPRoute shop/reviews, rule canary
              reviews.yaml:7 (9f8e7d6)

            to shop/reviews-v1:8080, 90 % of the requests
              PRIORITY  LOAD   ENDPOINT           CLUSTER  LOCALITY   ADDRESS           HEALTH   VIA
              0         100 %  east-reviews-v1-1  east     eu-east/a  127.1.0.15:15006  healthy

            authorization
              AT               VERDICT  POLICY                RULE   WHERE          COMMIT
              shop/reviews-v1  deny     shop/reviews-readers  front  policy.yaml:3  9f8e7d6
        "#]]
        .assert_eq(&text(&request, &answer, Style::PLAIN));
    }

    #[test]
    fn settings_read_as_configuration_writes_them() {
        let value = r#"{"attempts":2,"on":["RESET","REFUSED"],"backoff":{"base":"25ms","max":"250ms"}}"#;
        assert_eq!(
            wrapped(value, 60),
            ["attempts: 2, on: [RESET, REFUSED]", "backoff: { base: 25ms, max: 250ms }"]
        );
        assert_eq!(wrapped(value, 20).len(), 3);
        assert_eq!(wrapped("KEEP", 20), ["KEEP"]);
    }

    #[test]
    fn headers_are_read_as_curl_reads_them() {
        assert_eq!(header("X-User: ada:1"), Ok(("x-user".into(), "ada:1".into())));
        assert!(header("nothing").is_err());
        let repeated = vec![("a".into(), "1".into()), ("a".into(), "2".into())];
        assert_eq!(joined(repeated), BTreeMap::from([("a".into(), "1,2".into())]));
    }
}
