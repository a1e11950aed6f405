//! SPIFFE ids, and the server names of the mesh: one text for one name.

use api::{endpoint::ServerName, identity::SpiffeId};

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text, "an id is written as it was read");
        assert_eq!(id.to_string().parse(), Ok(id.clone()));
        assert!(text.len() <= 2048 && text.starts_with("spiffe://"));
        assert!(!text[9..].contains("//") && !text[9..].contains(['%', ':', '?', '#', '@']));
        let parts = (id.namespace(), id.service_account());
        if let (Some(namespace), Some(account)) = parts {
            assert_eq!(SpiffeId::workload(id.trust_domain(), namespace, account), id);
            let said = format!("spiffe://{}/ns/{namespace}/sa/{account}", id.trust_domain());
            assert_eq!(said, text, "the parts are those of the text");
        }
    }
    match ServerName::parse(text) {
        Some(ServerName::Gateway) => assert_eq!(api::endpoint::GATEWAY_NAME, text),
        Some(ServerName::Endpoint(id)) => assert_eq!(id.sni(), text),
        Some(ServerName::Service { port, service }) => {
            let (namespace, name) = service.split_once('/').expect("namespace/name");
            assert_eq!(format!("{port}.{name}.{namespace}.svc.weft.internal"), text);
        }
        None => {}
    }
    if ServerName::parse(text).is_some() {
        assert!(ServerName::is_mesh(text));
    }
}
