//! The socket options that travel with a connection: those that an application may
//! have set on the one connection and would miss. All others are as the application
//! on the target made its fresh socket.
//!
//! Each has a number of its own in a snapshot, so that the kernel's numbers, which
//! differ between architectures, stay out of it.

use std::{io, time::Duration};

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET, c_int};

use super::socket::Socket;

/// An option and its value, as a snapshot has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Setting {
    /// [`Known::id`].
    pub id: u8,
    pub value: i64,
}

/// When an option is set on a restored socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum When {
    /// Before there is a connection.
    Fresh,
    /// Once it is active, before what was never sent is written.
    Active,
    /// After that: it would start a timer or keep some of it out.
    Last,
}

/// What an option is to the kernel, and how its value is written here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Int,
    /// `struct linger`: seconds, or -1 for off.
    Linger,
    /// `struct timeval`: microseconds.
    Time,
    /// Eight bytes.
    Long,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Family {
    Both,
    V4,
    V6,
}

/// An option that is carried.
#[derive(Debug)]
struct Known {
    id: u8,
    level: c_int,
    name: c_int,
    kind: Kind,
    family: Family,
    when: When,
}

const fn known(id: u8, (level, name): (c_int, c_int), when: When) -> Known {
    Known {
        id,
        level,
        name,
        kind: Kind::Int,
        family: Family::Both,
        when,
    }
}

const fn of_kind(kind: Kind, known: Known) -> Known {
    Known { kind, ..known }
}

const fn only(family: Family, known: Known) -> Known {
    Known { family, ..known }
}

const TCP: c_int = IPPROTO_TCP;

/// In the order in which they are set; `id`s are for good and ascend.
static KNOWN: [Known; 27] = [
    only(
        Family::V4,
        known(1, (IPPROTO_IP, libc::IP_TOS), When::Fresh),
    ),
    only(
        Family::V6,
        known(2, (IPPROTO_IPV6, libc::IPV6_TCLASS), When::Fresh),
    ),
    only(
        Family::V4,
        known(3, (IPPROTO_IP, libc::IP_TTL), When::Fresh),
    ),
    only(
        Family::V6,
        known(4, (IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS), When::Fresh),
    ),
    only(
        Family::V4,
        known(5, (IPPROTO_IP, libc::IP_MTU_DISCOVER), When::Fresh),
    ),
    only(
        Family::V6,
        known(6, (IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER), When::Fresh),
    ),
    // After IP_TOS, which sets it too.
    known(7, (SOL_SOCKET, libc::SO_PRIORITY), When::Fresh),
    // Routes may depend on it.
    known(8, (SOL_SOCKET, libc::SO_MARK), When::Fresh),
    known(9, (SOL_SOCKET, libc::SO_OOBINLINE), When::Fresh),
    known(10, (TCP, libc::TCP_NODELAY), When::Fresh),
    known(11, (TCP, libc::TCP_KEEPIDLE), When::Fresh),
    known(12, (TCP, libc::TCP_KEEPINTVL), When::Fresh),
    known(13, (TCP, libc::TCP_KEEPCNT), When::Fresh),
    known(14, (TCP, libc::TCP_LINGER2), When::Fresh),
    known(15, (TCP, libc::TCP_THIN_LINEAR_TIMEOUTS), When::Fresh),
    known(16, (TCP, libc::TCP_INQ), When::Fresh),
    of_kind(
        Kind::Long,
        known(17, (SOL_SOCKET, libc::SO_MAX_PACING_RATE), When::Fresh),
    ),
    of_kind(
        Kind::Linger,
        known(18, (SOL_SOCKET, libc::SO_LINGER), When::Fresh),
    ),
    of_kind(
        Kind::Time,
        known(19, (SOL_SOCKET, libc::SO_RCVTIMEO), When::Fresh),
    ),
    of_kind(
        Kind::Time,
        known(20, (SOL_SOCKET, libc::SO_SNDTIMEO), When::Fresh),
    ),
    known(21, (TCP, libc::TCP_CORK), When::Active),
    known(22, (TCP, libc::TCP_NOTSENT_LOWAT), When::Last),
    known(23, (SOL_SOCKET, libc::SO_RCVLOWAT), When::Last),
    known(24, (SOL_SOCKET, libc::SO_PEEK_OFF), When::Last),
    known(25, (TCP, libc::TCP_USER_TIMEOUT), When::Last),
    known(26, (SOL_SOCKET, libc::SO_KEEPALIVE), When::Last),
    known(27, (TCP, libc::TCP_QUICKACK), When::Last),
];

/// How many options there are at most.
pub(super) const MAX: usize = KNOWN.len();

/// Whether an option of this number is known.
pub(super) fn is_known(id: u8) -> bool {
    KNOWN.iter().any(|known| known.id == id)
}

/// Reads all that this kernel knows, for a connection over IPv4 (in whatever kind of
/// socket) or IPv6.
pub(super) fn read(socket: Socket<'_>, v4: bool) -> io::Result<Vec<Setting>> {
    let mut settings = Vec::with_capacity(MAX);
    for known in KNOWN.iter().filter(|known| known.is_for(v4)) {
        match known.read(socket) {
            Ok(value) => settings.push(Setting {
                id: known.id,
                value,
            }),
            Err(error) if is_unknown(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(settings)
}

/// Sets those whose time it is. One that the kernel here does not know is left out;
/// `Err` names one that it refuses.
pub(super) fn write(
    socket: Socket<'_>,
    settings: &[Setting],
    when: When,
) -> Result<(), (u8, io::Error)> {
    for setting in settings {
        let known = KNOWN.iter().find(|known| known.id == setting.id);
        let Some(known) = known.filter(|known| known.when == when) else {
            continue;
        };
        match known.write(socket, setting.value) {
            Err(error) if !is_unknown(&error) => return Err((known.id, error)),
            _ => {}
        }
    }
    Ok(())
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP)
    )
}

impl Known {
    fn is_for(&self, v4: bool) -> bool {
        match self.family {
            Family::Both => true,
            Family::V4 => v4,
            Family::V6 => !v4,
        }
    }

    fn read(&self, socket: Socket<'_>) -> io::Result<i64> {
        let (level, name) = (self.level, self.name);
        Ok(match self.kind {
            Kind::Int => socket.int(level, name)?.into(),
            Kind::Linger => {
                let mut value = [0; 8];
                socket.bytes(level, name, &mut value)?;
                let [on, seconds] = halves(value);
                if on == 0 { -1 } else { seconds.into() }
            }
            Kind::Time => {
                let mut value = [0; 16];
                socket.bytes(level, name, &mut value)?;
                let (seconds, micros) = value.split_at(8);
                let whole = |bytes: &[u8]| {
                    let mut word = [0; 8];
                    word.copy_from_slice(bytes);
                    i64::from_ne_bytes(word)
                };
                whole(seconds)
                    .saturating_mul(1_000_000)
                    .saturating_add(whole(micros))
            }
            Kind::Long => {
                let mut value = [0; 8];
                socket.bytes(level, name, &mut value)?;
                i64::from_ne_bytes(value)
            }
        })
    }

    fn write(&self, socket: Socket<'_>, value: i64) -> io::Result<()> {
        let (level, name) = (self.level, self.name);
        // What was an integer there is one here; what is none, nobody read there.
        let int = i32::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        match self.kind {
            Kind::Int => socket.set_int(level, name, int?),
            Kind::Linger => {
                let (on, seconds): (i32, i32) = match int? {
                    -1 => (0, 0),
                    seconds => (1, seconds),
                };
                let value = [on.to_ne_bytes(), seconds.to_ne_bytes()].concat();
                socket.set_bytes(level, name, &value)
            }
            Kind::Time => {
                let micros = u64::try_from(value)
                    .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
                let time = Duration::from_micros(micros);
                let value = [
                    (time.as_secs() as i64).to_ne_bytes(),
                    i64::from(time.subsec_micros()).to_ne_bytes(),
                ];
                socket.set_bytes(level, name, &value.concat())
            }
            Kind::Long => socket.set_bytes(level, name, &value.to_ne_bytes()),
        }
    }
}

fn halves(value: [u8; 8]) -> [i32; 2] {
    let [a, b, c, d, e, f, g, h] = value;
    [
        i32::from_ne_bytes([a, b, c, d]),
        i32::from_ne_bytes([e, f, g, h]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_good() {
        assert!(KNOWN.iter().map(|known| known.id).eq(1..=MAX as u8));
    }
}
