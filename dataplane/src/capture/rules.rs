//! The rules as nft reads them. Pure.

use super::Capture;

/// Removes the table whether it is there or not, and as one with what follows.
pub(super) const REMOVAL: &str = "table inet weft\ndelete table inet weft\n";

/// DNS, and the ports of the mesh itself.
const LEFT_ALONE: &str = "tcp dport { 53, 15000-15090 } return";

/// How an operator reaches the host, who would be cut off by a proxy that knows no such port.
const SSH: u16 = 22;

/// Replaces the table by what `capture` says.
pub fn script(capture: &Capture) -> String {
    let mut out = format!("{REMOVAL}table inet weft {{\n");
    let mut chain = |name: &str, hook: &str, rules: Vec<String>| {
        let rules: String = rules.iter().map(|rule| format!("\t\t{rule}\n")).collect();
        out += &format!(
            "\tchain {name} {{\n\t\ttype nat hook {hook} priority -100; policy accept;\n{rules}\t}}\n"
        );
    };
    chain("outbound", "output", outbound(capture));
    chain("inbound", "prerouting", inbound(capture));
    out.push_str("}\n");
    out
}

fn outbound(capture: &Capture) -> Vec<String> {
    let mut users = vec![capture.user];
    users.extend(&capture.exclude.users);
    let mut rules = vec!["oifname \"lo\" return".to_owned()];
    rules.extend(matching("meta skuid", users));
    rules.push(LEFT_ALONE.to_owned());
    rules.extend(matching("tcp dport", capture.exclude.outbound_ports.clone()));
    // Rules of their own, since ranges that overlap are no set.
    rules.extend(capture.exclude.addresses.iter().map(|range| {
        let family = if range.address.is_ipv4() { "ip" } else { "ip6" };
        format!("{family} daddr {range} return")
    }));
    rules.push(format!("meta l4proto tcp redirect to :{}", capture.outbound));
    rules
}

fn inbound(capture: &Capture) -> Vec<String> {
    // What is only passed on by this host is no business of its application.
    let mut rules = vec!["iifname \"lo\" return".to_owned(), "fib daddr type != local return".to_owned()];
    rules.push(LEFT_ALONE.to_owned());
    let mut ports = capture.exclude.inbound_ports.clone();
    ports.extend((!capture.serves_ssh).then_some(SSH));
    rules.extend(matching("tcp dport", ports));
    rules.push(format!("meta l4proto tcp redirect to :{}", capture.inbound));
    rules
}

/// Leaves alone what matches any of these.
fn matching<T: Ord + ToString>(what: &str, mut values: Vec<T>) -> Option<String> {
    values.sort();
    values.dedup();
    let values: Vec<_> = values.iter().map(T::to_string).collect();
    (!values.is_empty()).then(|| format!("{what} {{ {} }} return", values.join(", ")))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::capture::Exclude;

    #[test]
    fn all_is_captured_but_what_is_left_alone() {
        let capture = Capture {
            install: true,
            user: 1337,
            outbound: 15001,
            inbound: 15006,
            serves_ssh: false,
            exclude: Exclude {
                users: vec![1000, 1337],
                inbound_ports: vec![9100],
                outbound_ports: vec![9000, 25],
                addresses: vec!["10.0.0.0/8".parse().unwrap(), "fd00::1".parse().unwrap()],
            },
        };
        expect![[r#"
            table inet weft
            delete table inet weft
            table inet weft {
            	chain outbound {
            		type nat hook output priority -100; policy accept;
            		oifname "lo" return
            		meta skuid { 1000, 1337 } return
            		tcp dport { 53, 15000-15090 } return
            		tcp dport { 25, 9000 } return
            		ip daddr 10.0.0.0/8 return
            		ip6 daddr fd00::1/128 return
            		meta l4proto tcp redirect to :15001
            	}
            	chain inbound {
            		type nat hook prerouting priority -100; policy accept;
            		iifname "lo" return
            		fib daddr type != local return
            		tcp dport { 53, 15000-15090 } return
            		tcp dport { 22, 9100 } return
            		meta l4proto tcp redirect to :15006
            	}
            }
        "#]]
        .assert_eq(&script(&capture));
        let serving = script(&Capture { serves_ssh: true, ..capture });
        assert!(serving.contains("\t\ttcp dport { 9100 } return\n"), "{serving}");
    }
}
