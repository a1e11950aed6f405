//! What `weft up` prints once ready: where everything is, and five things to try.

use std::path::Path;

use crate::{
    descriptor::Descriptor,
    output::{Cell, Style, Table, Tone},
};

/// The text for people.
pub(crate) fn text(up: &Descriptor, dir: &Path, seconds: f64, style: Style) -> String {
    let workloads: usize = up.clusters.iter().map(|cluster| cluster.workloads.len()).sum();
    let mut clusters = Table::new(["CLUSTER", "ROLE", "INGRESS", "EAST-WEST", "API", "WORKLOADS"]);
    for cluster in &up.clusters {
        clusters.row([
            Cell::toned(Tone::Strong, cluster.name.as_str()),
            format!("{:?}", cluster.role).to_lowercase().into(),
            cluster.ingress.as_str().into(),
            cluster.eastwest.as_str().into(),
            cluster.api.as_str().into(),
            cluster.workloads.len().to_string().into(),
        ]);
    }
    let headline = format!("Weft is up: {workloads} workloads in two clusters, ready in {seconds:.1} s.");
    format!(
        "{}\n\n{}\n  configuration  {}\n  state          {}\n\n{}\n{}\n\
         Ctrl-C ends everything; the state stays, and the next `weft up` goes on from it.",
        style.paint(Tone::Good, &headline),
        clusters.render(style),
        up.repository.display(),
        dir.display(),
        style.paint(Tone::Strong, "Five things to try, in another terminal:"),
        things_to_try(up),
    )
}

fn things_to_try(up: &Descriptor) -> String {
    let Some(east) = up.primary() else { return String::new() };
    let ingress = &east.ingress;
    let of = |service: &'static str| {
        east.workloads.iter().filter(move |workload| workload.service.as_str() == service)
    };
    let ids = |service| of(service).map(|workload| workload.id.to_string()).collect::<Vec<_>>();
    let pids = of("catalogue").map(|workload| workload.pid.to_string()).collect::<Vec<_>>().join(" ");
    let caller = ids("front").into_iter().next().unwrap_or_else(|| "shop/front".to_owned());
    format!(
        "
  cd {repository}

  1. Commit a canary: most readers get reviews v3, in both clusters at once.
       sed -i '/reviews-v1/s/weight: 60/weight: 10/; /reviews-v3/s/weight: 10/weight: 60/' traffic/reviews.yaml
       git commit -am 'reviews: most on v3' && weft wait HEAD && curl {ingress}/reviews

  2. Deny a caller: a 403 until the commit is reverted. `decision` in the body is the id in the access log of
     the sidecar that refused (the header `weft-decision` is the one of the last hop, here the front's own).
       sed -i '/name: reviews-readers/,/^---/s/\"front\"/\"nobody\"/' security/authorization.yaml
       git commit -am 'reviews: not for the front' && weft wait HEAD && curl {ingress}/reviews
       git revert --no-edit HEAD && weft wait HEAD

  3. Kill a service: the other cluster serves its requests, see `served_by`.
       kill -9 {pids}; curl {ingress}/
       weft workload start {restarts}

  4. Explain a request: route, endpoints, verdict, and the line that says so.
       weft explain --from {caller} GET reviews:8080 /reviews

  5. Look at the page: clusters, commits, services.
       {console}
",
        repository = up.repository.display(),
        restarts = ids("catalogue").join(" "),
        console = up.console,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_has_real_addresses() {
        let text = text(&crate::descriptor::tests::sample(), Path::new("/srv/weft-up"), 4.21, Style::PLAIN);
        for part in [
            "Weft is up: 1 workloads in two clusters, ready in 4.2 s.",
            "  east     primary  http://127.1.0.3:8080  127.1.0.2:15443  http://127.1.0.1:15080  1\n",
            "  configuration  /srv/weft-up/config\n",
            "curl http://127.1.0.3:8080/reviews",
            "s/\"front\"/\"nobody\"/",
            "http://127.1.0.1:15080/?login=abc",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }
}
