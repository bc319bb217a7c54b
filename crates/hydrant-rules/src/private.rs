//! Hosts that are private on their face. What a name resolves to is checked at connect.

use std::net::{Ipv4Addr, Ipv6Addr};
use url::Host;

pub fn is_plainly_private(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Host::Ipv4(ip) => is_private_v4(*ip),
        Host::Ipv6(ip) => is_private_v6(*ip),
    }
}

fn is_private_v4(ip: Ipv4Addr) -> bool {
    let shared = matches!(ip.octets(), [100, 64..=127, ..]); // RFC 6598, carrier NAT
    let this_network = ip.octets()[0] == 0;
    ip.is_loopback() || ip.is_private() || ip.is_link_local() || this_network || shared
}

fn is_private_v6(ip: Ipv6Addr) -> bool {
    let local_nat64 = ip.segments()[..3] == [0x64, 0xff9b, 1]; // RFC 8215
    let site_local = ip.segments()[0] & 0xffc0 == 0xfec0; // RFC 3879, deprecated
    ip.is_loopback()
        || ip.is_unique_local()
        || ip.is_unicast_link_local()
        || site_local
        || local_nat64
        || embedded_v4(ip).is_some_and(is_private_v4)
}

/// The IPv4 address inside a compatible (`::a.b.c.d`, RFC 4291), mapped (`::ffff:a.b.c.d`),
/// NAT64 (`64:ff9b::a.b.c.d`, RFC 6052) or 6to4 (`2002:aabb:ccdd::`, RFC 3056) address.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => Some(v4(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use url::Url;

    fn private(host: &str) -> bool {
        let url = Url::parse(&format!("https://{host}/")).unwrap();
        is_plainly_private(&url.host().unwrap())
    }

    #[test]
    fn every_spelling_of_a_private_address_is_private() {
        for host in [
            "localhost",
            "localhost.",
            "a.localhost",
            "127.1",
            "0x7f000001",
            "10.0.0.1",
            "172.31.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "0.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "[::]",
            "[::1]",
            "[::10.0.0.1]",
            "[::ffff:10.0.0.1]",
            "[64:ff9b::10.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::1]",
            "[2002:a00:1::1]",
            "[2002:6440:1::]",
            "[fe80::1]",
            "[fec0::1]",
            "[fc00::1]",
            "[fd00:ec2::254]",
        ] {
            assert!(private(host), "{host}");
        }
    }

    #[test]
    fn public_and_documentation_addresses_are_not() {
        for host in [
            "docker.io",
            "localhost.example",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.0",
            "192.0.2.1",
            "203.0.113.1",
            "[2001:db8::1]",
            "[2606:4700::1]",
            "[::ffff:8.8.8.8]",
            "[64:ff9b::8.8.8.8]",
            "[2002:808:808::1]",
        ] {
            assert!(!private(host), "{host}");
        }
    }
}
