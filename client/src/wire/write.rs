//! From messages to datagrams.

use std::net::{IpAddr, SocketAddr};

use super::{
    Connection, Family, HEADER_LEN, MESSAGE_MAX, Message, PART_MAX, Pending, SERVICES_MAX, TCP,
    VERSION, canonical, cut_text, kind,
};

pub(super) fn encode(message: &Message<'_>) -> Vec<u8> {
    let (kind, number) = head(message);
    // Room for the whole from the beginning: a vector that grows leaves copies behind.
    let part_len = match message {
        Message::State { part, .. } => part.len(),
        _ => 64,
    };
    let mut out = Vec::with_capacity(HEADER_LEN + 8 + part_len);
    out.extend([VERSION, kind, 0, 0, 0, 0, 0, 0]);
    out.extend(number.to_be_bytes());
    body(message, &mut out);
    debug_assert!(out.len() <= MESSAGE_MAX);
    let body_len = (out.len() - HEADER_LEN) as u32;
    out[4..8].copy_from_slice(&body_len.to_be_bytes());
    out
}

/// Kind and move number.
fn head(message: &Message<'_>) -> (u8, u64) {
    match *message {
        Message::Register { .. } => (kind::REGISTER, 0),
        Message::Pending { number, .. } => (kind::PENDING, number),
        Message::Ready => (kind::READY, 0),
        Message::Exported { number } => (kind::EXPORTED, number),
        Message::Imported { number } => (kind::IMPORTED, number),
        Message::Kept { number } => (kind::KEPT, number),
        Message::Adopted { number } => (kind::ADOPTED, number),
        Message::Refuse { number, .. } => (kind::REFUSE, number),
        Message::State { number, .. } => (kind::STATE, number),
        Message::Registered { .. } => (kind::REGISTERED, 0),
        Message::Closing { .. } => (kind::CLOSING, 0),
        Message::Export { number, .. } => (kind::EXPORT, number),
        Message::Committed { number } => (kind::COMMITTED, number),
        Message::Resume { number, .. } => (kind::RESUME, number),
        Message::Import { number, .. } => (kind::IMPORT, number),
        Message::Adopt { number } => (kind::ADOPT, number),
        Message::Drop { number } => (kind::DROP, number),
    }
}

fn body(message: &Message<'_>, out: &mut Vec<u8>) {
    match message {
        Message::Register { protocol, services } => {
            debug_assert!(protocol.is_valid() && services.len() <= SERVICES_MAX);
            put_text(out, &protocol.name);
            out.extend(protocol.version.to_be_bytes());
            out.extend((services.len() as u16).to_be_bytes());
            for service in services {
                out.push(TCP);
                put_endpoint(out, *service);
            }
        }
        Message::Pending {
            pending,
            connection,
            ..
        } => {
            out.push(match pending {
                Pending::Export => 1,
                Pending::Import => 2,
                Pending::Kept => 3,
            });
            put_connection(out, connection);
        }
        Message::Refuse { reason, text, .. } => {
            out.push(*reason as u8);
            put_text(out, cut_text(text));
        }
        Message::State {
            total,
            offset,
            part,
            ..
        } => {
            debug_assert!(part.len() <= PART_MAX);
            out.extend(total.to_be_bytes());
            out.extend(offset.to_be_bytes());
            out.extend_from_slice(part);
        }
        Message::Registered {
            blob_max,
            moves_max,
        } => {
            out.extend(blob_max.to_be_bytes());
            out.extend(moves_max.to_be_bytes());
        }
        Message::Closing { closing, text } => {
            out.push(*closing as u8);
            put_text(out, cut_text(text));
        }
        Message::Export {
            within_ms,
            connection,
            ..
        } => {
            out.extend(within_ms.to_be_bytes());
            put_connection(out, connection);
        }
        Message::Resume { state, .. } => out.push((*state).into()),
        Message::Import {
            within_ms,
            family,
            connection,
            ..
        } => {
            out.extend(within_ms.to_be_bytes());
            out.push(match family {
                Family::V4 => 4,
                Family::V6 => 6,
            });
            put_connection(out, connection);
        }
        Message::Ready
        | Message::Exported { .. }
        | Message::Imported { .. }
        | Message::Kept { .. }
        | Message::Adopted { .. }
        | Message::Committed { .. }
        | Message::Adopt { .. }
        | Message::Drop { .. } => {}
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8);
    out.extend(text.as_bytes());
}

fn put_connection(out: &mut Vec<u8>, connection: &Connection) {
    out.push(TCP);
    put_endpoint(out, connection.client);
    put_endpoint(out, connection.service);
}

fn put_endpoint(out: &mut Vec<u8>, endpoint: SocketAddr) {
    let endpoint = canonical(endpoint);
    match endpoint.ip() {
        IpAddr::V4(address) => {
            out.push(4);
            out.extend(address.octets());
        }
        IpAddr::V6(address) => {
            out.push(6);
            out.extend(address.octets());
        }
    }
    out.extend(endpoint.port().to_be_bytes());
}
