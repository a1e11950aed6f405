//! In which clusters an object applies: by its label, by its folder, else in all.

use super::{PLACEMENT_LABEL, diagnostic::Code, report::Report};
use crate::{
    name::ClusterName,
    resource::{Kind, Meta},
};

const LABEL_POINTER: &str = "/metadata/labels/weft.mesh~1clusters";
/// Clusters that one label names. Each is a copy of the object.
const MAX_CLUSTERS: usize = 64;

/// Takes the placement out of the labels: the clusters that the object is for, or `None`, once, for all.
pub(crate) fn place(kind: Kind, meta: &mut Meta, report: &mut Report) -> Vec<Option<ClusterName>> {
    let label = meta.labels.remove(PLACEMENT_LABEL).map(|text| clusters(&text, report));
    let folder = folder(report);
    let wanted = match (kind, &label, folder) {
        (Kind::Mesh, Some(_), _) => {
            report.value(
                LABEL_POINTER,
                Code::Placement,
                "the Mesh rules every cluster: it cannot be placed in some",
            );
            return vec![None];
        }
        (Kind::Mesh, None, Some(folder)) => {
            report.value(
                "/metadata/name",
                Code::Placement,
                format!("the Mesh rules every cluster: it cannot lie in the folder of `{folder}`"),
            );
            return vec![None];
        }
        // A member may be described in its own folder; the description itself is known to all.
        (Kind::Cluster, Some(_), _) => {
            report.value(
                LABEL_POINTER,
                Code::Placement,
                "every cluster knows every Cluster: it cannot be placed in some",
            );
            return vec![None];
        }
        (Kind::Cluster, None, Some(folder)) => {
            if folder.as_str() != meta.name.as_str() {
                let message =
                    format!("the Cluster `{}` lies in the folder of another, `{folder}`", meta.name);
                report.value("/metadata/name", Code::Placement, message);
            }
            return vec![None];
        }
        (_, None, None) => return vec![None],
        (_, None, Some(folder)) => vec![folder],
        (_, Some(label), None) => label.clone(),
        (_, Some(label), Some(folder)) => {
            if label.iter().any(|cluster| *cluster != folder) {
                let message = format!(
                    "the label says other clusters than the folder, which says `{folder}`: keep one of them"
                );
                report.value(LABEL_POINTER, Code::Placement, message);
            }
            vec![folder]
        }
    };
    wanted.into_iter().map(Some).collect()
}

fn clusters(text: &str, report: &mut Report) -> Vec<ClusterName> {
    let count = text.split(',').count();
    if count > MAX_CLUSTERS {
        let message = format!(
            "at most {MAX_CLUSTERS} clusters in one label, these are {count}: without the label it applies in all"
        );
        report.value(LABEL_POINTER, Code::Limit, message);
        return Vec::new();
    }
    let mut clusters = Vec::new();
    for part in text.split(',').map(str::trim) {
        match ClusterName::new(part) {
            Ok(cluster) if clusters.contains(&cluster) => {
                report.value(LABEL_POINTER, Code::Placement, format!("`{cluster}` is named twice"));
            }
            Ok(cluster) => clusters.push(cluster),
            Err(error) => report.value(LABEL_POINTER, Code::Placement, error.to_string()),
        }
    }
    clusters
}

/// `clusters/<name>/` in the path of the file, wherever it stands; the innermost counts.
fn folder(report: &mut Report) -> Option<ClusterName> {
    let parts: Vec<&str> = report.file.split('/').collect();
    let folders = &parts[..parts.len() - 1];
    let name = folders.windows(2).rev().find(|pair| pair[0] == "clusters").map(|pair| pair[1])?;
    match ClusterName::new(name) {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            report.value(
                "/metadata/name",
                Code::Placement,
                format!("the folder `clusters/{name}` names no cluster: {error}"),
            );
            None
        }
    }
}
