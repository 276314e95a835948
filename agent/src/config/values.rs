//! What single values may be.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use homing_common::host::{HostId, MAX_HOSTS};
use toml::de::DeValue;

use super::{
    Group, Mss,
    read::{Bad, not_a},
};

/// The largest size of a table. A BPF hash takes 80 to 140 bytes an entry, so
/// this is 1.5 GB: more is a slip of the finger.
pub const LIMIT_MAX: u32 = 1 << 24;

/// The most carriers to one host that can be asked for.
pub const CARRIERS_MAX: u32 = 8;

/// The most moves at once, each way: with those that are confirmed and divert stragglers
/// they fit into the map `MOVING`.
pub const MOVES_MAX: u16 = 256;

/// An address range in the usual notation, without host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The first address.
    pub address: IpAddr,
    /// How many leading bits are fixed.
    pub len: u8,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl Prefix {
    /// The leading `len` bits of an address, and how many bits it has.
    fn bits(address: IpAddr, len: u8) -> (u128, u8) {
        let (bits, width) = match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
        (bits & mask, width)
    }

    /// Whether two ranges have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        let len = self.len.min(other.len);
        Self::bits(self.address, len) == Self::bits(other.address, len)
    }

    /// Whether an address is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::bits(self.address, self.len) == Self::bits(address, self.len)
    }

    fn without_host_bits(&self) -> Self {
        let (bits, width) = Self::bits(self.address, self.len);
        let address = if width == 32 {
            Ipv4Addr::from_bits((bits >> 96) as u32).into()
        } else {
            Ipv6Addr::from_bits(bits).into()
        };
        Self { address, ..*self }
    }
}

fn text<'v>(value: &'v DeValue<'_>, wanted: &str, fix: &str) -> Result<&'v str, Bad> {
    value.as_str().ok_or_else(|| not_a(wanted, value, fix))
}

/// A whole number in a range.
pub(super) fn number(
    value: &DeValue<'_>,
    range: std::ops::RangeInclusive<u32>,
) -> Result<u32, Bad> {
    let fix = format!("write one from {} to {}", range.start(), range.end());
    let Some(number) = value.as_integer() else {
        return Err(not_a("a whole number", value, &fix));
    };
    i64::from_str_radix(number.as_str(), number.radix())
        .ok()
        .and_then(|number| u32::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| Bad::new(format!("{number} is out of range"), fix))
}

/// The largest MSS: a word, or a number from the least that every host takes.
pub(super) fn mss(value: &DeValue<'_>) -> Result<Mss, Bad> {
    if value.as_integer().is_some() {
        // The range keeps it within 16 bits.
        return number(value, 536..=65_495).map(|mss| Mss::Fixed(mss as u16));
    }
    word(value, &[("auto", Mss::Auto), ("off", Mss::Off)]).map_err(|bad| Bad {
        fix: "write \"auto\", \"off\" or a number from 536 to 65495".to_owned(),
        ..bad
    })
}

/// How many carriers: a word, or a number.
pub(super) fn carriers(value: &DeValue<'_>) -> Result<Option<usize>, Bad> {
    if value.as_integer().is_some() {
        return number(value, 1..=CARRIERS_MAX).map(|count| Some(count as usize));
    }
    word(value, &[("auto", None)]).map_err(|bad| Bad {
        fix: format!("write \"auto\", or a number from 1 to {CARRIERS_MAX}"),
        ..bad
    })
}

/// Yes or no.
pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, Bad> {
    let fix = "write true or false";
    value
        .as_bool()
        .ok_or_else(|| not_a("true or false", value, fix))
}

/// The size of a table.
pub(super) fn limit(value: &DeValue<'_>) -> Result<u32, Bad> {
    number(value, 1..=LIMIT_MAX)
}

/// A host id.
pub(super) fn host_id(value: &DeValue<'_>) -> Result<HostId, Bad> {
    // The range keeps it within 16 bits.
    number(value, 1..=MAX_HOSTS - 1).map(|id| HostId(id as u16))
}

/// An absolute path.
pub(super) fn path(value: &DeValue<'_>) -> Result<PathBuf, Bad> {
    let text = text(value, "a path in quotes", "write \"/an/absolute/path\"")?;
    if !Path::new(text).is_absolute() || text.contains('\0') {
        return Err(Bad::new(
            format!("\"{text}\" is not an absolute path"),
            "write it from / on: it must mean the same wherever the agent is started",
        ));
    }
    Ok(text.into())
}

/// The path of a Unix socket.
pub(super) fn socket_path(value: &DeValue<'_>) -> Result<PathBuf, Bad> {
    /// `sun_path` in `unix(7)`, less its final zero.
    const MAX_LEN_BYTES: usize = 107;
    let path = path(value)?;
    let len = path.as_os_str().len();
    if len > MAX_LEN_BYTES {
        return Err(Bad::new(
            format!("is {len} bytes long, and a Unix socket's path ends at {MAX_LEN_BYTES}"),
            "use a shorter path, such as one under /run/homing",
        ));
    }
    Ok(path)
}

/// A program and its arguments; empty for none.
pub(super) fn command(value: &DeValue<'_>) -> Result<Vec<String>, Bad> {
    let fix = "write [\"/an/absolute/path\", \"argument\", \"argument\"], or [] for none";
    let Some(items) = value.as_array() else {
        return Err(not_a("a program and its arguments", value, fix));
    };
    let items = items.iter().map(|item| {
        let text = text(item.get_ref(), "a list of texts in quotes", fix)?;
        match text.contains('\0') {
            false => Ok(text.to_owned()),
            true => Err(Bad::new("no argument can hold a zero byte", fix)),
        }
    });
    let argv: Vec<_> = items.collect::<Result<_, _>>()?;
    match argv.first() {
        Some(program) if !Path::new(program).is_absolute() => Err(Bad::new(
            format!(
                "\"{program}\" is not an absolute path: no shell runs it, and nothing is searched for"
            ),
            fix,
        )),
        _ => Ok(argv),
    }
}

/// Whether an instance or a domain can be named so: in paths and tables.
pub fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=32).contains(&text.len()) && text.chars().all(fits)
}

/// A name that is used in paths and tables.
pub(super) fn name(value: &DeValue<'_>) -> Result<String, Bad> {
    let fix = "write 1 to 32 letters, digits, - or _, such as \"rack-1\"";
    let text = text(value, "a name in quotes", fix)?;
    if !is_name(text) {
        return Err(Bad::new(format!("\"{text}\" is not a name"), fix));
    }
    Ok(text.to_owned())
}

/// The name of a network interface.
pub(super) fn interface(value: &DeValue<'_>) -> Result<String, Bad> {
    let fix = "write its name as `ip link` shows it, such as \"eth0\"";
    let text = text(value, "an interface's name in quotes", fix)?;
    // dev_valid_name() in the kernel's net/core/dev.c.
    let fits = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
    if text.is_empty() || text.len() > 15 || !text.chars().all(fits) || text == "." || text == ".."
    {
        return Err(Bad::new(
            format!("\"{text}\" cannot be an interface's name"),
            fix,
        ));
    }
    Ok(text.to_owned())
}

/// One of several words.
pub(super) fn word<T: Copy>(value: &DeValue<'_>, words: &[(&str, T)]) -> Result<T, Bad> {
    let list: Vec<_> = words
        .iter()
        .map(|(word, _)| format!("\"{word}\""))
        .collect();
    let fix = format!("write {}", list.join(" or "));
    let text = text(value, "a word in quotes", &fix)?;
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| Bad::new(format!("\"{text}\" is none of the choices"), fix))
}

/// A duration: a whole number and its unit.
pub(super) fn duration(
    value: &DeValue<'_>,
    range: std::ops::RangeInclusive<Duration>,
) -> Result<Duration, Bad> {
    let fix = format!(
        "write a whole number and its unit (ms, s, m, h) in quotes, from \"{}\" to \"{}\"",
        show_duration(*range.start()),
        show_duration(*range.end())
    );
    let text = text(value, "a duration in quotes", &fix)?;
    let Some(duration) = parse_duration(text) else {
        return Err(Bad::new(format!("\"{text}\" is not a duration"), fix));
    };
    if !range.contains(&duration) {
        return Err(Bad::new(format!("\"{text}\" is out of range"), fix));
    }
    Ok(duration)
}

/// The duration that a text such as `90s` names.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let factor_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(factor_ms)?))
}

/// A duration in the largest unit that it is a whole number of.
pub(super) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let (per_unit, unit) = [(3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")]
        .into_iter()
        .find(|(per_unit, _)| ms > 0 && ms.is_multiple_of(*per_unit))
        .unwrap_or((1_000, "s"));
    format!("{}{unit}", ms / per_unit)
}

const SIZES: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];

/// A number of bytes: a whole number and its unit.
pub(super) fn size(value: &DeValue<'_>, range: std::ops::RangeInclusive<u64>) -> Result<u64, Bad> {
    let fix = format!(
        "write a whole number and its unit (KiB, MiB, GiB) in quotes, from \"{}\" to \"{}\"",
        show_size(*range.start()),
        show_size(*range.end())
    );
    let text = text(value, "a size in quotes", &fix)?;
    let Some(size) = parse_size(text) else {
        return Err(Bad::new(format!("\"{text}\" is not a size"), fix));
    };
    if !range.contains(&size) {
        return Err(Bad::new(format!("\"{text}\" is out of range"), fix));
    }
    Ok(size)
}

fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let (factor, _) = SIZES.into_iter().find(|(_, name)| *name == unit)?;
    number.checked_mul(factor)
}

/// A size in the largest unit that it is a whole number of.
pub(super) fn show_size(bytes: u64) -> String {
    let (factor, unit) = SIZES
        .into_iter()
        .find(|(factor, _)| bytes.is_multiple_of(*factor))
        .unwrap_or((1, " bytes"));
    format!("{}{unit}", bytes / factor)
}

/// A group of users, by its name or number.
pub(super) fn user_group(value: &DeValue<'_>) -> Result<Group, Bad> {
    let fix = "write a group's name in quotes, such as \"www-data\", or its number";
    if value.as_integer().is_some() {
        // The highest number means none to chown(2).
        return number(value, 0..=u32::MAX - 1).map(Group::Id);
    }
    let text = text(value, "a group's name in quotes, or its number", fix)?;
    // As it could stand in group(5).
    let fits = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, ':' | ',' | '/');
    if text.is_empty() || !text.chars().all(fits) {
        return Err(Bad::new(format!("\"{text}\" is no group's name"), fix));
    }
    Ok(Group::Name(text.to_owned()))
}

/// The address of one host or service: not one that every machine has, that
/// means many, or that nothing can be sent to.
pub(super) fn check_unicast(ip: IpAddr) -> Result<(), Bad> {
    let fix = |fix: &str| fix.to_owned();
    let (kind, fix) = match ip {
        _ if ip.is_unspecified() => (
            "means any address",
            fix("write the address itself; there is no wildcard"),
        ),
        _ if ip.is_loopback() => (
            "never leaves this machine",
            fix("write an address that the network routes"),
        ),
        _ if ip.is_multicast() => ("is a multicast group", fix("write a unicast address")),
        IpAddr::V4(v4) if v4.is_broadcast() => {
            ("is the broadcast address", fix("write a unicast address"))
        }
        IpAddr::V4(v4) if v4.octets()[0] == 0 => (
            "is in 0.0.0.0/8, which nothing can be sent to",
            fix("write an address that the network routes"),
        ),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => (
            "is in 240.0.0.0/4, which is reserved",
            fix("write an address that the network routes"),
        ),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => (
            "is an IPv4 address in IPv6 clothes",
            format!("write {}", ip.to_canonical()),
        ),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => (
            "is link-local: it says nothing without its interface",
            fix("write a global or unique local (fd00::/8) address"),
        ),
        _ => return Ok(()),
    };
    Err(Bad::new(format!("{ip} {kind}"), fix))
}

/// The address of a service.
pub(super) fn service_address(value: &DeValue<'_>) -> Result<IpAddr, Bad> {
    let fix = "write one such as \"203.0.113.10\" or \"2001:db8:113::10\", without a port";
    let text = text(value, "an address in quotes", fix)?;
    let ip: IpAddr = text
        .parse()
        .map_err(|_| Bad::new(format!("\"{text}\" is not an IP address"), fix))?;
    check_unicast(ip)?;
    Ok(ip)
}

fn endpoint(value: &DeValue<'_>, fix: &str) -> Result<SocketAddr, Bad> {
    let text = text(value, "an address and port in quotes", fix)?;
    let endpoint: SocketAddr = text
        .parse()
        .map_err(|_| Bad::new(format!("\"{text}\" is not an IP address and port"), fix))?;
    if endpoint.port() == 0 {
        return Err(Bad::new("port 0 is no port", fix));
    }
    Ok(endpoint)
}

/// A fabric address.
pub(super) fn fabric_address(value: &DeValue<'_>) -> Result<SocketAddr, Bad> {
    let fix = "write one such as \"10.1.1.11:7946\" or \"[fd00:1:1::11]:7946\"";
    let endpoint = endpoint(value, fix)?;
    check_unicast(endpoint.ip())?;
    Ok(endpoint)
}

/// A multicast group and port.
pub(super) fn group(value: &DeValue<'_>) -> Result<SocketAddr, Bad> {
    let fix = "write one such as \"239.77.77.77:7947\" or \"[ff12::77]:7947\"";
    let group = endpoint(value, fix)?;
    let reserved = match group.ip() {
        ip if !ip.is_multicast() => {
            return Err(Bad::new(format!("{ip} is not a multicast group"), fix));
        }
        // RFC 5771: control traffic of the local network.
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        // RFC 7346: reserved and interface-local scope never reach another host.
        IpAddr::V6(ip) => ip.segments()[0] & 0xf <= 1,
    };
    if reserved {
        let what = format!("{} is reserved for the network's own use", group.ip());
        return Err(Bad::new(what, fix));
    }
    Ok(group)
}

/// The tunnel network.
pub(super) fn network(value: &DeValue<'_>) -> Result<Prefix, Bad> {
    let fix = "write one such as \"10.77.0.0/16\" or \"fd77::/48\"";
    let text = text(value, "a network in quotes", fix)?;
    let parsed = text.split_once('/').and_then(|(address, len)| {
        let address: IpAddr = address.parse().ok()?;
        let len = len.parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        (len <= width).then_some(Prefix { address, len })
    });
    let Some(prefix) = parsed else {
        return Err(Bad::new(format!("\"{text}\" is not a network"), fix));
    };
    let first = prefix.without_host_bits();
    if first != prefix {
        return Err(Bad::new(
            format!("{prefix} has bits set beyond its first {}", prefix.len),
            format!("write \"{first}\""),
        ));
    }
    for (reserved, what) in RESERVED {
        let (address, len) = reserved;
        let address = address.parse().expect("constant");
        if prefix.overlaps(&Prefix { address, len: *len }) {
            return Err(Bad::new(
                format!("{prefix} overlaps {address}/{len}, {what}"),
                fix,
            ));
        }
    }
    Ok(prefix)
}

/// Ranges that no tunnel address can be in.
const RESERVED: &[((&str, u8), &str)] = &[
    (("0.0.0.0", 8), "which nothing can be sent to"),
    (("127.0.0.0", 8), "which never leaves the machine"),
    (("224.0.0.0", 3), "which is multicast and reserved"),
    (("::", 32), "which is no unicast range"),
    (("fe80::", 10), "which is link-local"),
    (("ff00::", 8), "which is multicast"),
];
