use std::os::unix::fs::PermissionsExt;

use data_encoding::{BASE64, BASE64URL_NOPAD};

use super::*;
use crate::descriptor;

const TOKEN: &str = "weftw1.eyJpZCI6IjAwIn0.c2lnbmF0dXJl";
const ADMIN: &str = "Zb0-w1TTy8lqbJxPq3n6h2c9Vd5sKf4gRtUeYiOpAsD";
const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----\n";

/// A `weft up` directory whose logs are as careless as logs can be.
fn careless() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let up = root.path().join("weft-up");
    let write = |name: &str, text: &str| crate::process::write_private(&up.join(name), text).unwrap();
    fs::create_dir_all(&up).unwrap();
    let mut sample = descriptor::tests::sample();
    sample.clusters.iter_mut().for_each(|cluster| cluster.api = "http://127.0.0.1:1".into());
    sample.write(&up).unwrap();
    for cluster in sample.clusters {
        let name = cluster.name;
        write(&format!("{name}/controlplane/admin.token"), ADMIN);
        write(
            &format!("{name}/controlplane/config.json"),
            r#"{"admin":"127.0.0.1:1","metrics":"127.0.0.1:1"}"#,
        );
        write(&format!("{name}/controlplane/output.log"), &format!("admin token: {ADMIN}\nis up\n"));
        let sidecar = format!("{name}/workloads/w-1/sidecar");
        write(&format!("{sidecar}/token"), TOKEN);
        write(&format!("{sidecar}/identity.pem"), PEM);
        write(
            &format!("{sidecar}/config.json"),
            r#"{"admin":"127.0.0.1:1","tokenFile":"/t","password":"hunter2"}"#,
        );
        let log = format!("joining with {TOKEN}\nmy key is\n{PEM}\ncookie: session=hunter2; x\nended well\n");
        write(&format!("{sidecar}/output.log"), &log);
    }
    (root, up)
}

/// All that is in the archive, as one text.
fn unpacked(file: &Path) -> String {
    let gzip = flate2::read::GzDecoder::new(fs::File::open(file).unwrap());
    let mut whole = String::new();
    for part in tar::Archive::new(gzip).entries().unwrap() {
        let mut part = part.unwrap();
        whole += &format!("== {}\n", part.path().unwrap().display());
        part.read_to_string(&mut whole).unwrap();
    }
    whole
}

#[tokio::test]
async fn a_report_tells_what_can_be_had_and_no_secret() {
    let (root, up) = careless();
    let descriptor = descriptor::Descriptor::read(&up).unwrap();
    let mesh = Mesh::of(up, descriptor);
    let file = root.path().join("report.tar.gz");
    let made = make(&mesh, file.clone()).await.unwrap();

    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let whole = unpacked(&file);
    for part in ["east/w-1/log.txt", "east/w-1/settings.json", "east/controlplane/log.txt", "about.json"] {
        assert!(whole.contains(&format!("== weft-bug-report/{part}\n")), "{part} in\n{whole}");
    }
    for told in ["ended well", "is up", "\"tokenFile\": \"/t\"", "joining with"] {
        assert!(whole.contains(told), "{told} in\n{whole}");
    }
    // Nobody answers at any address: that is said, and no reason to give up.
    assert!(made.missing.contains_key("east/controlplane/status.json"), "{:?}", made.missing);
    assert!(made.missing.contains_key("east/w-1/runtime.json") && whole.contains("east/w-1/runtime.json"));

    for secret in [TOKEN, ADMIN, "MIGHAgEAMBMGByqGSM49", "hunter2", "c2lnbmF0dXJl"] {
        let encoded =
            [secret.to_owned(), BASE64.encode(secret.as_bytes()), BASE64URL_NOPAD.encode(secret.as_bytes())];
        assert!(encoded.iter().all(|secret| !whole.contains(secret)), "{secret} in\n{whole}");
    }
    assert!(make(&mesh, file.clone()).await.is_err(), "a file that is there is not overwritten");
    assert!(file.exists(), "nor removed");
}

#[tokio::test]
async fn a_token_that_cannot_be_read_is_a_part_that_is_missing() {
    let (root, up) = careless();
    fs::remove_file(up.join("east/controlplane/admin.token")).unwrap();
    let mesh = Mesh::of(up.clone(), descriptor::Descriptor::read(&up).unwrap());
    let made = make(&mesh, root.path().join("report.tar.gz")).await.unwrap();
    let why = &made.missing["east/controlplane/status.json"];
    assert!(why.contains("cannot read the admin API's token"), "{why}");
    assert!(without(&made.missing).contains("  without east/controlplane/status.json: cannot read"));
}

#[tokio::test]
async fn of_nothing_no_report_is_made() {
    let root = tempfile::tempdir().unwrap();
    descriptor::tests::sample().write(root.path()).unwrap();
    let mesh = Mesh::of(root.path().to_owned(), descriptor::tests::sample());
    let file = root.path().join("report.tar.gz");
    let error = make(&mesh, file.clone()).await.unwrap_err().to_string();
    assert!(error.starts_with("nothing could be gathered\n  without east/controlplane/log.txt: "), "{error}");
    assert!(!file.exists(), "a report of nothing is left");
}
