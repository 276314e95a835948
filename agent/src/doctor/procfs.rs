//! What the files of `/proc` say. Each function takes a file's text.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

/// Major and minor version of a kernel's release, such as `6.1.0-28-amd64`.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Where cgroups of version 2 are mounted, by `/proc/self/mountinfo` (proc(5)).
pub(super) fn cgroup2_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        (file_system.split(' ').next() == Some("cgroup2")).then_some(())?;
        Some(PathBuf::from(mount.split(' ').nth(4)?))
    });
    mounts.collect()
}

/// VLAN interfaces and what each is above, by `/proc/net/vlan/config`: two lines of titles,
/// then `eth0.5 | 5 | eth0`.
pub(super) fn vlans(config: &str) -> BTreeMap<String, String> {
    let lines = config.lines().filter_map(|line| {
        let mut parts = line.split('|').map(str::trim);
        let (name, _id, below) = (parts.next()?, parts.next()?, parts.next()?);
        Some((name.to_owned(), below.to_owned()))
    });
    lines.collect()
}

/// The process that has locked a file (flock(2)), by `/proc/locks`.
pub(super) fn lock_holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        // `->` stands before those who wait for a lock.
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else {
            return None;
        };
        (place == file).then(|| pid.parse().ok()).flatten()
    })
}

/// A number of `/proc/net/snmp`: the group's line of names, then its line of numbers.
pub(super) fn snmp(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text
        .lines()
        .filter_map(|line| line.strip_prefix(group)?.strip_prefix(':'));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let mut both = names.split_whitespace().zip(numbers.split_whitespace());
    both.find(|(found, _)| *found == name)?.1.parse().ok()
}

/// The inodes of sockets that nobody else can have a socket beside on this address and
/// port, by `/proc/net/tcp`, `udp`, `tcp6` or `udp6`. `state`: only those in it.
pub(super) fn sockets_at(text: &str, address: SocketAddr, state: Option<&str>) -> Vec<u64> {
    let lines = text.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let local = endpoint(fields.get(1)?)?;
        let ip = local.ip();
        let same_address =
            ip == address.ip() || (ip.is_unspecified() && (ip.is_ipv6() || address.is_ipv4()));
        let same_state = state.is_none_or(|state| fields.get(3) == Some(&state));
        (same_address && local.port() == address.port() && same_state).then_some(())?;
        fields.get(9)?.parse().ok()
    });
    lines.collect()
}

/// `0100007F:1F90`: an address in words of the machine's order, and a port.
fn endpoint(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let words = (0..address.len() / 8).map(|n| {
        let word = u32::from_str_radix(address.get(n * 8..n * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<_>>>()?.concat();
    let ip = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions() {
        assert_eq!(version("6.1.0-28-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.14.0-503.el9.x86_64"), Some((5, 14)));
        assert_eq!(version("6.18-rc3"), Some((6, 18)));
        assert_eq!(version("linux"), None);
    }

    #[test]
    fn mounts_of_both_versions() {
        let text = "\
36 25 0:31 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
37 25 0:32 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw
38 25 0:33 / /mnt rw,relatime - ext4 /dev/cgroup2 rw
";
        assert_eq!(
            cgroup2_mounts(text),
            [PathBuf::from("/sys/fs/cgroup/unified")]
        );
    }

    #[test]
    fn vlan_interfaces() {
        let text = "\
VLAN Dev name    | VLAN ID
Name-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD
eth0.100       | 100  | eth0
";
        assert_eq!(vlans(text), [("eth0.100".into(), "eth0".into())].into());
    }

    #[test]
    fn who_holds_a_lock() {
        let text = "\
1: POSIX  ADVISORY  WRITE 5 00:1f:77 0 EOF
2: FLOCK  ADVISORY  WRITE 13810 00:1f:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 99 00:1f:77 0 EOF
3: FLOCK  ADVISORY  WRITE 4711 00:20:77 0 EOF
";
        let device = libc::makedev(0, 0x1f);
        assert_eq!(lock_holder(text, device, 77), Some(13810));
        assert_eq!(lock_holder(text, libc::makedev(0, 0x20), 77), Some(4711));
        assert_eq!(lock_holder(text, device, 7), None);
    }

    #[test]
    fn counters() {
        let text = "Tcp: InSegs InErrs InCsumErrors\nTcp: 10 2 7\nUdp: InCsumErrors\nUdp: 3\n";
        assert_eq!(snmp(text, "Tcp", "InCsumErrors"), Some(7));
        assert_eq!(snmp(text, "Udp", "InCsumErrors"), Some(3));
        assert_eq!(snmp(text, "Udp", "InErrs"), None);
    }

    #[test]
    fn sockets_on_an_address_or_on_all() {
        let text = "  sl  local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode
   0: 0B01010A:1F0A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0
   1: 0B01010A:1F0A 0C01010A:9C40 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0
   2: 00000000:1F0A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0
   3: 0C01010A:1F0A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 444 1 0
   4: 0B01010A:1F0B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 555 1 0
";
        let address = SocketAddr::from(([10, 1, 1, 11], 7946));
        assert_eq!(sockets_at(text, address, Some("0A")), [111, 333]);
        assert_eq!(sockets_at(text, address, None), [111, 222, 333]);
        let text = "titles\n 0: 00000000000000000000000000000000:1F0A 0:0 07 0:0 0:0 0 0 0 666\n";
        assert_eq!(sockets_at(text, address, None), [666]);
    }
}
