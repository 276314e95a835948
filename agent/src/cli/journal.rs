//! The log as journal entries.
//!
//! An event's message, as `journalctl` shows it, ends in its fields: a bare
//! "attached" would say nothing. Each field is also a field of the entry, so that
//! `journalctl HOMING_INTERFACE=eth0` finds it. The format is that of systemd's
//! "Native Journal Protocol"; the crate that speaks it puts fields only where a
//! plain `journalctl` does not show them, hence this layer.
//!
//! The agent never waits for the journal: an entry that it does not take at once
//! is dropped, and the next one that it takes says how many were. Each is sent to the
//! socket by its path, so that one that was made anew is found.

use std::{
    fmt::{self, Write as _},
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

/// Where the journal listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest value that is sent: a datagram must hold the whole entry.
const MAX_VALUE_BYTES: usize = 16 << 10;

/// Sends events to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Entries dropped since the last that was sent.
    dropped: AtomicU64,
}

impl Journal {
    /// The journal at `path`, which must listen.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        UnixDatagram::unbound()?.connect(path)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            dropped: AtomicU64::new(0),
        })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let dropped = self.dropped.load(Ordering::Relaxed);
        if dropped > 0 {
            fields.add("log_entries_dropped", &dropped.to_string());
        }
        let metadata = event.metadata();
        let mut entry = Vec::with_capacity(512);
        put(&mut entry, "MESSAGE", &(fields.message + &fields.text));
        put(&mut entry, "PRIORITY", priority(*metadata.level()));
        put(&mut entry, "SYSLOG_IDENTIFIER", "homing");
        put(&mut entry, "HOMING_TARGET", metadata.target());
        entry.extend(fields.entry);
        match self.socket.send_to(&entry, &self.path) {
            Ok(_) => self.dropped.fetch_sub(dropped, Ordering::Relaxed),
            Err(_) => self.dropped.fetch_add(1, Ordering::Relaxed),
        };
    }
}

/// Severity as in syslog(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// Appends a field: name, length and value, so that the value may hold anything.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let value = &value[..value.floor_char_boundary(MAX_VALUE_BYTES)];
    entry.extend(name.as_bytes());
    entry.push(b'\n');
    entry.extend((value.len() as u64).to_le_bytes());
    entry.extend(value.as_bytes());
    entry.push(b'\n');
}

/// An event's message, and its fields as text and as parts of an entry.
#[derive(Default)]
struct Fields {
    message: String,
    text: String,
    entry: Vec<u8>,
}

impl Fields {
    fn add(&mut self, name: &str, value: &str) {
        let name = name.strip_prefix("r#").unwrap_or(name);
        // Names of the journal's fields have capitals, digits and underscores.
        let fits = |c: char| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        };
        let key: String = name.chars().map(fits).collect();
        put(&mut self.entry, &format!("HOMING_{key}"), value);
        // Nothing can go wrong in writing to a string.
        let _ = match value.contains(char::is_whitespace) {
            true => write!(self.text, " {name}={value:?}"),
            false => write!(self.text, " {name}={value}"),
        };
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message = value,
            name => self.add(name, &value),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.add(name, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::admin::fake::Folder;

    /// Reads an entry back.
    fn fields(mut entry: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !entry.is_empty() {
            let end = entry.iter().position(|b| *b == b'\n').expect("name");
            let (name, rest) = (&entry[..end], &entry[end + 1..]);
            let len = u64::from_le_bytes(rest[..8].try_into().expect("length")) as usize;
            let value = &rest[8..8 + len];
            assert_eq!(rest[8 + len], b'\n');
            entry = &rest[8 + len + 1..];
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
            fields.push((text(name), text(value)));
        }
        fields
    }

    #[test]
    fn an_event_is_one_entry_with_its_fields() {
        let folder = Folder::new();
        let path = folder.0.join("socket");
        let reader = UnixDatagram::bind(&path).expect("bind");
        let journal = Journal::open(&path).expect("open");
        let subscriber = tracing_subscriber::registry().with(journal);
        let mut buffer = [0; 1 << 16];
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(
                interface = "eth0", mode = ?Some(1),
                fix = "look at it",
                "two\nlines of {}", "text"
            );
            let len = reader.recv(&mut buffer).expect("entry");
            let entry = fields(&buffer[..len]);
            let has = |name: &str, value: &str| {
                let field = (name.to_owned(), value.to_owned());
                assert!(entry.contains(&field), "{field:?} is not in {entry:?}");
            };
            has(
                "MESSAGE",
                "two\nlines of text interface=eth0 mode=Some(1) fix=\"look at it\"",
            );
            has("PRIORITY", "4");
            has("SYSLOG_IDENTIFIER", "homing");
            has("HOMING_INTERFACE", "eth0");
            has("HOMING_MODE", "Some(1)");
            has("HOMING_FIX", "look at it");

            // Longer than may be, and with a letter across the border.
            let long = "ä".repeat(MAX_VALUE_BYTES);
            tracing::info!("x{long}");
            let len = reader.recv(&mut buffer).expect("entry");
            let message = &fields(&buffer[..len])[0].1;
            assert_eq!(message.len(), MAX_VALUE_BYTES - 1);
        });
    }

    #[test]
    fn a_journal_that_listens_anew_gets_what_comes_then() {
        let folder = Folder::new();
        let path = folder.0.join("socket");
        assert!(Journal::open(&path).is_err(), "nobody listens");
        let first = UnixDatagram::bind(&path).expect("bind");
        let journal = Journal::open(&path).expect("open");
        let subscriber = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(subscriber, || {
            drop(first);
            tracing::info!("lost");
            std::fs::remove_file(&path).expect("remove");
            let second = UnixDatagram::bind(&path).expect("bind");
            second.set_nonblocking(true).expect("nonblocking");
            tracing::info!("after");
            let mut buffer = [0; 1 << 16];
            let len = second.recv(&mut buffer).expect("entry");
            let message = fields(&buffer[..len]).remove(0).1;
            assert_eq!(message, "after log_entries_dropped=1");
        });
    }

    #[test]
    fn a_journal_that_takes_nothing_is_not_waited_for() {
        let folder = Folder::new();
        let path = folder.0.join("socket");
        let reader = UnixDatagram::bind(&path).expect("bind");
        let journal = Journal::open(&path).expect("open");
        let subscriber = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(subscriber, || {
            const SENT: u64 = 10_000;
            for n in 0..SENT {
                tracing::info!(n, "entry");
            }
            reader.set_nonblocking(true).expect("nonblocking");
            let mut buffer = [0; 1 << 16];
            let mut received = 0;
            while reader.recv(&mut buffer).is_ok() {
                received += 1;
            }
            assert!(received < SENT, "nothing was dropped");
            let dropped = |buffer: &mut [u8]| {
                tracing::info!("after");
                let len = reader.recv(buffer).expect("entry");
                fields(&buffer[..len]).remove(0).1
            };
            let wanted = format!("after log_entries_dropped={}", SENT - received);
            assert_eq!(dropped(&mut buffer), wanted);
            assert_eq!(dropped(&mut buffer), "after");
        });
    }
}
