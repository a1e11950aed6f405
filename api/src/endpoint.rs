//! The name by which one port of one instance is reached: an opaque label in the SNI.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    digest::Hash,
    name::{BadName, ClusterName, InstanceId, ServiceName},
};

/// The domain of every SNI of the mesh. A ClientHello for it must bring a valid certificate, in every mode.
pub const MESH_DOMAIN: &str = ".weft.internal";

/// An address as a host is written: IPv6 in brackets.
pub fn host(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// The address that a host is, if it is one.
pub fn address(host: &str) -> Option<IpAddr> {
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inside) => inside.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => host.parse::<Ipv4Addr>().ok().map(IpAddr::from),
    }
}

const ENDPOINT_DOMAIN: &str = ".ep.weft.internal";

/// Lower-case unpadded base32 of the first 16 bytes of SHA-256 over cluster, instance and port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(String);

impl EndpointId {
    /// The id of `port` of `instance` in `cluster`.
    pub fn new(cluster: &ClusterName, instance: &InstanceId, port: u16) -> Self {
        let text = format!("{cluster}\0{instance}\0{port}");
        let hash = Hash::of(text.as_bytes());
        EndpointId(data_encoding::BASE32_NOPAD.encode(&hash.0[..16]).to_ascii_lowercase())
    }

    /// The id as it stands on the wire.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let well_formed =
            text.len() == 26 && text.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b));
        if well_formed {
            Ok(EndpointId(text.to_owned()))
        } else {
            Err(BadName {
                text: text.chars().take(80).collect(),
                wanted: "endpoint id",
                rule: "26 characters of lower-case base32",
            })
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The server name of its TLS.
    pub fn sni(&self) -> String {
        format!("{}{ENDPOINT_DOMAIN}", self.0)
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.0)
    }
}

/// What a server name of the mesh asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerName {
    /// One endpoint.
    Endpoint(EndpointId),
    /// Any endpoint of a service: `<port>.<service>.<namespace>.svc.weft.internal`.
    Service {
        /// The service's port.
        port: u16,
        /// `namespace/name`.
        service: String,
    },
    /// Nothing: whether the gateway itself is there.
    Gateway,
}

/// The server name that asks for the gateway itself. One that is older refuses it likewise.
pub const GATEWAY_NAME: &str = "gateway.weft.internal";

impl ServerName {
    /// Reads a server name; `None` when it is none of the mesh's forms.
    pub fn parse(sni: &str) -> Option<Self> {
        if sni == GATEWAY_NAME {
            return Some(ServerName::Gateway);
        }
        if let Some(label) = sni.strip_suffix(ENDPOINT_DOMAIN) {
            return EndpointId::parse(label).ok().map(ServerName::Endpoint);
        }
        let mut parts = sni.strip_suffix(".svc.weft.internal")?.splitn(3, '.');
        let digits = parts.next()?;
        let port: u16 = digits.parse().ok()?;
        let service = format!("{1}/{0}", parts.next()?, parts.next()?);
        // One text for one name: no `+8080`, no `08080`.
        let exact = port.to_string() == digits && service.parse::<ServiceName>().is_ok();
        exact.then_some(ServerName::Service { port, service })
    }

    /// Whether `sni` lies in the mesh's domain at all.
    pub fn is_mesh(sni: &str) -> bool {
        sni.ends_with(MESH_DOMAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_from_its_server_name() {
        let id = EndpointId::new(&"west".parse().unwrap(), &"reviews-1-a".parse().unwrap(), 8080);
        assert_eq!(id.as_str().len(), 26);
        assert_eq!(ServerName::parse(&id.sni()), Some(ServerName::Endpoint(id)));
        assert_eq!(
            ServerName::parse("8080.reviews.shop.svc.weft.internal"),
            Some(ServerName::Service { port: 8080, service: "shop/reviews".into() })
        );
        assert_eq!(ServerName::parse(GATEWAY_NAME), Some(ServerName::Gateway));
        for other in [
            "ABC.ep",
            "+8080.reviews.shop.svc",
            "08080.reviews.shop.svc",
            "1.reviews.sh.op.svc",
            "1.a_.b.svc",
        ] {
            assert_eq!(ServerName::parse(&format!("{other}.weft.internal")), None, "{other}");
        }
        assert!(ServerName::is_mesh("x.weft.internal") && !ServerName::is_mesh("weft.example"));
    }
}
