//! Whether an interface's driver has XDP, asked of the kernel's generic netlink family
//! `netdev` (Linux 6.3). Nothing is attached to find out.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

// linux/genetlink.h and linux/netdev.h
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
/// `NETDEV_XDP_ACT_BASIC`: pass, drop, abort, and send back.
const BASIC: u64 = 1;

const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
/// `struct nlmsghdr`, then `struct genlmsghdr`.
const HEADERS_LEN: usize = 16 + 4;

/// Whether the driver of the interface with this index runs XDP itself. None: the kernel
/// does not tell.
pub(crate) fn is_native(ifindex: u32) -> io::Result<Option<bool>> {
    let family = ask(
        GENL_ID_CTRL,
        CTRL_CMD_GETFAMILY,
        CTRL_ATTR_FAMILY_NAME,
        b"netdev\0",
    );
    let family = match family {
        Ok(answer) => answer,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let id = attribute(&family, CTRL_ATTR_FAMILY_ID)
        .and_then(|bytes| Some(u16::from_ne_bytes(bytes.try_into().ok()?)))
        .ok_or(io::ErrorKind::InvalidData)?;
    let index = ifindex.to_ne_bytes();
    let device = ask(id, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index)?;
    let features = attribute(&device, NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
    Ok(features.map(|features| features & BASIC != 0))
}

/// One question with one attribute, and the attributes of its answer.
fn ask(family: u16, command: u8, kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&question(family, command, kind, value), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer
        .get(4..6)
        .map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let body = answer.get(16..20).ok_or(io::ErrorKind::InvalidData)?;
    if kind == Some(NLMSG_ERROR) {
        let errno = i32::from_ne_bytes(body.try_into().expect("four bytes"));
        return Err(io::Error::from_raw_os_error(-errno));
    }
    Ok(answer[HEADERS_LEN..].to_vec())
}

fn question(family: u16, command: u8, kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute_len = 4 + value.len();
    let len = HEADERS_LEN + attribute_len.next_multiple_of(4);
    let mut bytes = Vec::with_capacity(len);
    bytes.extend((len as u32).to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence and port: one question, one answer.
    bytes.extend([0; 8]);
    // Command, version, two reserved bytes.
    bytes.extend([command, 1, 0, 0]);
    bytes.extend((attribute_len as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(len, 0);
    bytes
}

/// The value of the first attribute of a kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let header = bytes.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        // The upper two bits are flags.
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = bytes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_no_native_xdp() {
        let index = nix::net::if_::if_nametoindex("lo").expect("lo");
        let native = is_native(index).expect("an answer");
        // None on kernels before 6.3.
        assert_ne!(native, Some(true));
        assert!(is_native(u32::MAX).is_err() || native.is_none());
    }

    #[test]
    fn attributes_are_found_and_a_cut_answer_has_none() {
        let mut bytes = question(1, 2, 7, b"abc")[HEADERS_LEN..].to_vec();
        bytes.extend(&question(1, 2, 0x8003, &[9; 8])[HEADERS_LEN..]);
        assert_eq!(attribute(&bytes, 7), Some(&b"abc"[..]));
        assert_eq!(attribute(&bytes, 3), Some(&[9; 8][..]));
        assert_eq!(attribute(&bytes, 4), None);
        assert_eq!(attribute(&bytes[..bytes.len() - 1], 3), None);
        assert_eq!(attribute(&[0; 4], 3), None);
    }
}
