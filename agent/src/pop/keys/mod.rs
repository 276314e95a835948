//! The POP's keys, and the keys derived from them.
//!
//! Members accept two keys and sign with one, so that the POP's key can be changed
//! while it runs ([`KeyFile`]). Session ids come from a key of their own: a session
//! keeps its id when the others change. That key changes in three steps, too: while
//! there is another one beside it, hosts tell of each of their sessions by both ids, so
//! it does not matter by which one a host looks them up. Where fragments meet all hosts
//! must choose alike at every moment: that key stays while the key of session ids
//! changes.

mod file;

use std::path::Path;

use homing_common::session::SessionKey;

use crate::datapath::local::SessionKeys;

pub use file::{Key, KeyError, KeyFile, Keyring, Other, Untimely, Use};

/// Contexts of BLAKE3's key derivation: one per use, so that no use can be
/// turned against another.
const DATAGRAMS: &str = "homing v1 2026 datagram authentication";
const SESSIONS: &str = "homing v1 2026 session id";
const FRAGMENTS: &str = "homing v1 2026 meeting of fragments";
const ECHOES: &str = "homing v1 2026 echo";
const CARRIERS: &str = "homing v1 2026 carrier";
const KEY_ID: &str = "homing v1 2026 key id";

/// Everything that is derived from the POP's keys.
#[derive(Clone)]
pub struct Keys {
    /// Authenticates datagrams that this host sends.
    pub(super) sign: DatagramKey,
    /// Datagrams under it are accepted as well.
    pub(super) other: Option<DatagramKey>,
    /// Hash session tuples to ids.
    pub session: SessionKeys,
    /// The public ids of both. Where there is no other one, they are the same.
    pub session_ids: [u8; 2],
    /// Chooses where fragments meet.
    pub fragments: SessionKey,
    /// Its public id.
    pub fragments_id: u8,
    /// Sign echoes between kernels: what is asked is signed with the first, and
    /// either is accepted. One of zeros is none.
    pub echo: [SessionKey; 2],
    /// Protect carriers.
    pub carriers: CarrierKeys,
}

/// The keys of carriers.
#[derive(Clone, PartialEq, Eq)]
pub struct CarrierKeys {
    /// Carriers are opened with it.
    pub(crate) sign: CarrierKey,
    /// Those that were opened with it are accepted as well.
    pub(crate) other: Option<CarrierKey>,
}

/// A key of carriers.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct CarrierKey {
    /// The public id of the key that it was derived from.
    pub id: u8,
    pub key: Key,
}

impl CarrierKeys {
    /// The key with a public id.
    pub(crate) fn by_id(&self, id: u8) -> Option<&CarrierKey> {
        let mut keys = [Some(&self.sign), self.other.as_ref()].into_iter();
        keys.find_map(|key| key.filter(|key| key.id == id))
    }

    /// Whether carriers that were opened with a key are accepted.
    pub(crate) fn accept(&self, key: &CarrierKey) -> bool {
        self.by_id(key.id) == Some(key)
    }
}

impl CarrierKey {
    fn of(master: &Key) -> Self {
        Self {
            id: key_id(master),
            key: blake3::derive_key(CARRIERS, master),
        }
    }
}

/// A key that authenticates datagrams.
#[derive(Clone)]
pub(super) struct DatagramKey {
    /// Stands in each datagram, so that a host with another key is told apart from
    /// a forger.
    pub id: u8,
    pub key: Key,
}

impl Keys {
    /// Reads a key file.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Ok(Self::of(&KeyFile::read(path)?))
    }

    /// Derives all keys from those of a file.
    pub fn of(file: &KeyFile) -> Self {
        let (other, other_session) = (file.sign.other(), file.session.other());
        let session_id = key_id(&file.session.key);
        let echo = |key| siphash_key(ECHOES, key);
        Self {
            sign: DatagramKey::of(&file.sign.key),
            other: other.map(DatagramKey::of),
            session: SessionKeys {
                key: siphash_key(SESSIONS, &file.session.key),
                other: other_session.map(|other| siphash_key(SESSIONS, other)),
            },
            session_ids: [session_id, other_session.map_or(session_id, key_id)],
            fragments: siphash_key(FRAGMENTS, file.fragments()),
            fragments_id: key_id(file.fragments()),
            echo: [
                echo(&file.sign.key),
                other.map_or_else(Default::default, echo),
            ],
            carriers: CarrierKeys {
                sign: CarrierKey::of(&file.sign.key),
                other: other.map(CarrierKey::of),
            },
        }
    }

    /// Derives all keys from a single one.
    pub fn derive(master: &Key) -> Self {
        Self::of(&KeyFile::of(*master))
    }

    /// The public id of the key that signs.
    pub fn id(&self) -> u8 {
        self.sign.id
    }

    /// The public id of the key that is accepted beside it.
    pub fn other_id(&self) -> Option<u8> {
        self.other.as_ref().map(|key| key.id)
    }

    /// The key that a datagram says it is signed with.
    pub(super) fn by_id(&self, id: u8) -> Option<&DatagramKey> {
        if self.sign.id == id {
            return Some(&self.sign);
        }
        self.other.as_ref().filter(|key| key.id == id)
    }
}

impl DatagramKey {
    fn of(master: &Key) -> Self {
        Self {
            id: key_id(master),
            key: blake3::derive_key(DATAGRAMS, master),
        }
    }
}

/// The public id of a key.
pub fn key_id(master: &Key) -> u8 {
    blake3::derive_key(KEY_ID, master)[0]
}

/// A SipHash key: the first 16 bytes of what is derived, as two little-endian words.
fn siphash_key(context: &str, master: &Key) -> SessionKey {
    let key = blake3::derive_key(context, master);
    let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|i| key[n * 8 + i]));
    SessionKey([word(0), word(1)])
}

impl std::fmt::Debug for Keys {
    /// Shows the keys' public ids alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys(id {:02x}", self.id())?;
        if let Some(other) = self.other_id() {
            write!(f, ", other {other:02x}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_keys_differ_from_each_other() {
        let keys = Keys::derive(&[7; 32]);
        let session = keys.session.key.0.map(u64::to_le_bytes).concat();
        assert_ne!(keys.sign.key[..16], session[..]);
        assert!(keys.echo[0] != keys.session.key);
        assert!(![keys.session.key, keys.echo[0]].contains(&keys.fragments));
        assert!(keys.echo[1] == SessionKey::default());
        assert_ne!(keys.sign.key, [7; 32]);
        assert_ne!(keys.sign.key, keys.carriers.sign.key);
        assert_ne!(Keys::derive(&[8; 32]).sign.key, keys.sign.key);
    }

    fn rotation(which: Use) -> [Keys; 4] {
        let first = KeyFile::of([7; 32]);
        let begun = first.begin(which).unwrap().unwrap();
        let promoted = begun.promote(which).unwrap();
        let finished = promoted.finish(which).unwrap();
        [first, begun, promoted, finished].map(|file| Keys::of(&file))
    }

    #[test]
    fn a_rotation_changes_all_keys_but_that_of_sessions() {
        let [before, _, middle, after] = rotation(Use::Sign);
        assert_eq!(middle.other_id(), Some(before.id()));
        assert!(middle.echo[1] == before.echo[0]);
        assert!(middle.by_id(before.id()).is_some() && after.by_id(before.id()).is_none());
        let carriers = &before.carriers.sign;
        assert!(middle.carriers.accept(carriers) && !after.carriers.accept(carriers));
        assert!(after.session == before.session && after.echo[0] != before.echo[0]);
        assert_ne!(after.id(), before.id());
    }

    #[test]
    fn whoever_is_a_step_away_tells_of_its_sessions_by_the_key_they_are_looked_up_by() {
        let steps = rotation(Use::Session);
        for pair in steps.windows(2) {
            for (looks_up, tells) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                let told = [Some(tells.session.key), tells.session.other];
                assert!(told.contains(&Some(looks_up.session.key)));
                assert!(tells.session_ids.contains(&looks_up.session_ids[0]));
            }
        }
        let [before, .., after] = &steps;
        assert!(before.session.key != after.session.key && after.session.other.is_none());
        assert!(before.id() == after.id() && before.echo == after.echo);
    }

    #[test]
    fn fragments_meet_by_one_key_however_often_that_of_session_ids_changes() {
        let mut file = KeyFile::of([7; 32]);
        let first = Keys::of(&file);
        for _ in 0..2 {
            file = file.begin(Use::Session).unwrap().unwrap();
            assert!(Keys::of(&file).fragments == first.fragments);
            file = file.promote(Use::Session).unwrap();
            assert!(Keys::of(&file).fragments == first.fragments);
            file = file.finish(Use::Session).unwrap();
            let keys = Keys::of(&file);
            assert!(keys.fragments == first.fragments && keys.session != first.session);
            assert_eq!(keys.fragments_id, first.fragments_id);
        }
    }
}
