//! Ranges of IP addresses, and the addresses that are nobody's.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A range of addresses: `10.0.0.0/8`. Invariant: behind the prefix every bit of the address is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// A text that is no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCidr {
    /// It has another shape.
    #[error("`{0}` is not a range of addresses: write `10.0.0.0/8` or `fc00::/7`")]
    Shape(String),
    /// It names an address inside of a range.
    #[error("`{0}` says more than its prefix: write `{1}`")]
    Inside(String, Cidr),
}

impl Cidr {
    /// Whether it holds the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(address, self.prefix) == Some(self.address)
    }
}

/// The address with nothing behind the prefix; `None` for a prefix that is longer than an address of the family.
fn masked(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            let behind = 32_u32.checked_sub(prefix.into())?;
            let mask = u32::MAX.checked_shl(behind).unwrap_or(0);
            Some(Ipv4Addr::from_bits(address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let behind = 128_u32.checked_sub(prefix.into())?;
            let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
            Some(Ipv6Addr::from_bits(address.to_bits() & mask).into())
        }
    }
}

/// What an address is that means no one host wherever it is asked for; `None` for all others, loopback among them.
pub(crate) fn nobodys(address: IpAddr) -> Option<&'static str> {
    match address.to_canonical() {
        own if own.is_unspecified() => Some("unspecified"),
        own if own.is_multicast() => Some("a multicast address"),
        IpAddr::V4(own) if own.is_broadcast() => Some("the broadcast address"),
        IpAddr::V4(own) if own.is_link_local() => Some("link-local"),
        IpAddr::V6(own) if own.is_unicast_link_local() => Some("link-local"),
        _ => None,
    }
}

impl FromStr for Cidr {
    type Err = BadCidr;
    fn from_str(text: &str) -> Result<Self, BadCidr> {
        let cut = || text.chars().take(80).collect::<String>();
        let parts = text.split_once('/').filter(|(_, length)| length.bytes().all(|b| b.is_ascii_digit()));
        let said = parts.and_then(|(address, length)| {
            Some((address.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?))
        });
        let (address, prefix) = said.ok_or_else(|| BadCidr::Shape(cut()))?;
        let range = masked(address, prefix).map(|address| Cidr { address, prefix });
        let range = range.ok_or_else(|| BadCidr::Shape(cut()))?;
        if range.address == address { Ok(range) } else { Err(BadCidr::Inside(cut(), range)) }
    }
}

impl fmt::Display for Cidr {
    /// `10.0.0.0/8`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Cidr {
    type Error = BadCidr;
    fn try_from(text: String) -> Result<Self, BadCidr> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(range: Cidr) -> String {
        range.to_string()
    }
}

impl JsonSchema for Cidr {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cidr".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "format": "Cidr", "description": "a range of IP addresses, `10.0.0.0/8`" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_what_begins_as_it_does() {
        let holds = |range: &str, address: &str| {
            range.parse::<Cidr>().unwrap().contains(address.parse::<IpAddr>().unwrap())
        };
        assert!(holds("10.0.0.0/8", "10.255.0.1"));
        assert!(!holds("10.0.0.0/8", "11.0.0.0"));
        assert!(holds("172.16.0.0/12", "172.31.255.255"));
        assert!(!holds("172.16.0.0/12", "172.32.0.0"));
        assert!(holds("192.0.2.1/32", "192.0.2.1"));
        assert!(!holds("192.0.2.1/32", "192.0.2.2"));
        assert!(holds("0.0.0.0/0", "8.8.8.8"));
        assert!(!holds("0.0.0.0/0", "2001:db8::1"), "of the other family");
        assert!(holds("fc00::/7", "fd00:96::9"));
        assert!(!holds("fc00::/7", "2001:db8::1"));
        assert!(holds("::/0", "2001:db8::1"));
        assert!(!holds("fd00::/64", "10.0.0.1"), "a prefix longer than the address");
    }

    #[test]
    fn a_range_is_written_in_one_way() {
        for text in ["10.0.0.0/8", "0.0.0.0/0", "fc00::/7", "::/0", "2001:db8::1/128"] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
        for text in ["10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/+8", "10.0.0.0/", "10.0.0/8", "/8", "a/8"]
        {
            assert!(matches!(text.parse::<Cidr>(), Err(BadCidr::Shape(_))), "{text}");
        }
        let wrong = "10.1.0.0/8".parse::<Cidr>().unwrap_err().to_string();
        assert_eq!(wrong, "`10.1.0.0/8` says more than its prefix: write `10.0.0.0/8`");
    }

    #[test]
    fn some_addresses_are_nobodys() {
        for text in ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "169.254.169.254", "fe80::1"]
        {
            assert!(nobodys(text.parse().unwrap()).is_some(), "{text}");
        }
        assert!(nobodys("::ffff:169.254.169.254".parse().unwrap()).is_some(), "in the clothes of IPv6");
        for text in ["127.0.0.1", "::1", "10.0.0.1", "240.0.0.1", "8.8.8.8", "2001:db8::1"] {
            assert!(nobodys(text.parse().unwrap()).is_none(), "{text}");
        }
    }
}
