//! What an interface's driver says of itself: counters, features, its name, by
//! `ioctl(SIOCETHTOOL)`.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

// linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETH_SS_STATS: u32 = 1;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;

/// More counters than any driver has (256 queues with some 40 each).
const MAX_STRINGS: usize = 16 << 10;

/// Room for them. Older kernels write all that the driver has at that instant,
/// whatever room the request names, so there must be some left over for queues
/// that come between two requests.
const ROOM_STRINGS: usize = 2 * MAX_STRINGS;

/// Words of `struct ethtool_drvinfo`: the command, five texts of 32 bytes, a reserve of
/// 12 bytes and five lengths.
const DRVINFO_WORDS: usize = (4 + 5 * 32 + 12 + 5 * 4) / 4;

/// All counters of an interface's driver, in its order.
pub(crate) fn counters(interface: &str) -> io::Result<Vec<(String, u64)>> {
    let socket = socket()?;
    let names = strings(&socket, interface, ETH_SS_STATS)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    // struct ethtool_stats: cmd, n_stats, data[n_stats] of u64, two words each.
    let mut values = vec![0; 2 + ROOM_STRINGS * 2];
    values[..2].copy_from_slice(&[ETHTOOL_GSTATS, names.len() as u32]);
    ethtool(&socket, interface, &mut values)?;

    // Queues may have come or gone between the requests.
    let count = names.len().min(values[1] as usize);
    let values = values[2..].chunks_exact(2).map(|pair| {
        let bytes = [pair[0].to_ne_bytes(), pair[1].to_ne_bytes()].concat();
        u64::from_ne_bytes(bytes.try_into().expect("two words"))
    });
    Ok(names.into_iter().zip(values).take(count).collect())
}

/// The features of an interface, by the kernel's names (`rx-lro`, `tx-checksum-ipv4`, …),
/// and whether each is in force.
pub(crate) fn features(interface: &str) -> io::Result<BTreeMap<String, bool>> {
    let socket = socket()?;
    let names = strings(&socket, interface, ETH_SS_FEATURES)?;
    let blocks = names.len().div_ceil(32);
    // struct ethtool_gfeatures: cmd, size in blocks; each block has 32 features in four
    // words: available, requested, active, never changed.
    let mut words = vec![0; 2 + 4 * blocks];
    words[..2].copy_from_slice(&[ETHTOOL_GFEATURES, blocks as u32]);
    ethtool(&socket, interface, &mut words)?;
    let active = |n: usize| words[2 + 4 * (n / 32) + 2] & 1 << (n % 32) != 0;
    let features = names.into_iter().enumerate();
    let features = features.map(|(n, name)| (name, active(n)));
    Ok(features.filter(|(name, _)| !name.is_empty()).collect())
}

/// The name of an interface's driver.
pub(crate) fn driver(interface: &str) -> io::Result<String> {
    let mut words = [0; DRVINFO_WORDS];
    words[0] = ETHTOOL_GDRVINFO;
    ethtool(&socket()?, interface, &mut words)?;
    Ok(texts(&words[1..=8]).remove(0))
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it is used.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The names of a set (`ETH_SS_*`); none where there are implausibly many.
fn strings(socket: &OwnedFd, interface: &str, set: u32) -> io::Result<Vec<String>> {
    // struct ethtool_sset_info: cmd, reserved, sset_mask (u64), data[1].
    let mut info = [0; 5];
    info[0] = ETHTOOL_GSSET_INFO;
    let mask = (1u64 << set).to_ne_bytes();
    for (word, bytes) in info[2..4].iter_mut().zip(mask.chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().expect("a word"));
    }
    ethtool(socket, interface, &mut info)?;
    let count = info[4] as usize;
    if count == 0 || count > MAX_STRINGS {
        return Ok(Vec::new());
    }
    // struct ethtool_gstrings: cmd, string_set, len, data[len][32]; the words
    // after the first three hold the names.
    let mut names = vec![0; 3 + ROOM_STRINGS * ETH_GSTRING_LEN / 4];
    names[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, set, count as u32]);
    ethtool(socket, interface, &mut names)?;
    let count = count.min(names[2] as usize);
    Ok(texts(&names[3..][..count * ETH_GSTRING_LEN / 4]))
}

/// Texts of 32 bytes each, that a zero ends.
fn texts(words: &[u32]) -> Vec<String> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let texts = bytes.chunks_exact(ETH_GSTRING_LEN).map(|text| {
        let len = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        String::from_utf8_lossy(&text[..len]).into_owned()
    });
    texts.collect()
}

/// One request of `ioctl(SIOCETHTOOL)`; `words` is the request and takes the
/// answer.
fn ethtool(socket: &OwnedFd, interface: &str, words: &mut [u32]) -> io::Result<()> {
    // SAFETY: an `ifreq` is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = interface.as_bytes();
    // One byte is left for the zero at the end.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: the kernel reads the request and writes at `ifru_data` what the driver
    // has: one word for the count, the driver's `struct ethtool_drvinfo`, as many blocks of
    // features as the request names, or names or values, for which there is room for
    // `ROOM_STRINGS`, twice what any driver has. Both live until the call returns.
    // The alignment of u32 suffices: the kernel copies bytes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_features_and_no_driver_counters() {
        let features = features("lo").expect("features");
        // It copies nothing onto a wire: checksums are never filled in.
        assert_eq!(features.get("tx-checksum-ip-generic"), Some(&true));
        assert_eq!(features.get("rx-lro"), Some(&false));
        assert!(driver("homing-none").is_err());
        assert!(driver("longer-than-a-name-can-be").is_err());
    }
}
