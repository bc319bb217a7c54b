//! Which addresses are public. `IpAddr::is_global` is unstable, so the IANA special-purpose
//! registries (RFC 6890 and its updates) are kept here as tables.

use ipnet::{Ipv4Net, Ipv6Net};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

/// How far an address reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Routable on the internet.
    Public,
    /// Loopback, private, link-local, shared, documentation and the like: dialled only where the
    /// configuration allows private addresses.
    Private,
    /// Unspecified, multicast or broadcast: nothing to connect to, whatever is configured.
    Never,
}

/// Whether `address` is routable on the internet, in whichever spelling it hides: IPv4 mapped into,
/// translated to (NAT64) or tunnelled through (6to4) IPv6 is judged by the IPv4 address inside.
pub fn is_public(address: IpAddr) -> bool {
    reach(address) == Reach::Public
}

/// How far `address` reaches; see [`is_public`].
pub fn reach(address: IpAddr) -> Reach {
    match address {
        IpAddr::V4(v4) => reach_v4(v4),
        IpAddr::V6(v6) => match embedded_v4(v6) {
            Some(v4) => reach_v4(v4),
            None => reach_v6(v6),
        },
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        return Reach::Never;
    }
    if SPECIAL_V4.iter().any(|net| net.contains(&address)) { Reach::Private } else { Reach::Public }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    if address.is_unspecified() || address.is_multicast() {
        return Reach::Never;
    }
    let global_unicast = GLOBAL_V6.contains(&address);
    if global_unicast && !SPECIAL_V6.iter().any(|net| net.contains(&address)) {
        Reach::Public
    } else {
        Reach::Private
    }
}

/// The IPv4 address that a transition mechanism hides in `address`.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bytes = address.octets();
    let at = |i: usize| Ipv4Addr::new(bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]);
    if MAPPED.contains(&address) || NAT64.contains(&address) {
        return Some(at(12));
    }
    SIX_TO_FOUR.contains(&address).then(|| at(2))
}

static MAPPED: LazyLock<Ipv6Net> = LazyLock::new(|| v6("::ffff:0:0/96"));
static NAT64: LazyLock<Ipv6Net> = LazyLock::new(|| v6("64:ff9b::/96"));
static SIX_TO_FOUR: LazyLock<Ipv6Net> = LazyLock::new(|| v6("2002::/16"));
/// All that IANA has given out as global unicast; everything outside is special.
static GLOBAL_V6: LazyLock<Ipv6Net> = LazyLock::new(|| v6("2000::/3"));

/// IANA IPv4 Special-Purpose Address Registry.
static SPECIAL_V4: LazyLock<Vec<Ipv4Net>> = LazyLock::new(|| {
    [
        "0.0.0.0/8",       // this network
        "10.0.0.0/8",      // private
        "100.64.0.0/10",   // shared (carrier NAT, some cloud metadata)
        "127.0.0.0/8",     // loopback
        "169.254.0.0/16",  // link-local, cloud metadata
        "172.16.0.0/12",   // private
        "192.0.0.0/24",    // protocol assignments
        "192.0.2.0/24",    // documentation
        "192.88.99.0/24",  // 6to4 relays
        "192.168.0.0/16",  // private
        "198.18.0.0/15",   // benchmarks
        "198.51.100.0/24", // documentation
        "203.0.113.0/24",  // documentation
        "240.0.0.0/4",     // reserved
    ]
    .map(v4)
    .to_vec()
});

/// IANA IPv6 Special-Purpose Address Registry, the part inside `2000::/3`.
static SPECIAL_V6: LazyLock<Vec<Ipv6Net>> = LazyLock::new(|| {
    [
        "2001::/23",     // protocol assignments, Teredo, ORCHID
        "2001:db8::/32", // documentation
        "3fff::/20",     // documentation
    ]
    .map(v6)
    .to_vec()
});

fn v4(text: &str) -> Ipv4Net {
    text.parse().expect("the tables hold valid networks")
}

fn v6(text: &str) -> Ipv6Net {
    text.parse().expect("the tables hold valid networks")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_spelling_of_a_private_address_is_private() {
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.100.100.200",
            "198.18.0.1",
            "192.0.2.1",
            "0.1.2.3",
            "240.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe::",
            "2001::1",
            "2001:db8::1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "fec0::1",
            "100::1",
            "5f00::1",
        ] {
            assert_eq!(reach(text.parse().unwrap()), Reach::Private, "{text}");
        }
    }

    #[test]
    fn public_addresses_are_public() {
        for text in [
            "1.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ] {
            assert_eq!(reach(text.parse().unwrap()), Reach::Public, "{text}");
        }
    }

    #[test]
    fn some_addresses_are_never_dialled() {
        for text in ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "::ffff:0.0.0.0"] {
            assert_eq!(reach(text.parse().unwrap()), Reach::Never, "{text}");
        }
    }

    proptest! {
        #[test]
        fn hiding_an_ipv4_address_changes_nothing(bits: u32) {
            let plain = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = plain.octets();
            let pair = |x: u8, y: u8| u16::from_be_bytes([x, y]);
            let hidden = [
                plain.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, pair(a, b), pair(c, d)),
                Ipv6Addr::new(0x2002, pair(a, b), pair(c, d), 0, 0, 0, 0, 1),
            ];
            for address in hidden {
                prop_assert_eq!(reach(IpAddr::V6(address)), reach(IpAddr::V4(plain)));
            }
        }
    }
}
