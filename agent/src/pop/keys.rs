//! The POP's key, and the keys derived from it.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use homing_common::session::SessionKey;

/// Contexts of BLAKE3's key derivation: one per use, so that no use can be
/// turned against another.
const DATAGRAMS: &str = "homing v1 2026 datagram authentication";
const SESSIONS: &str = "homing v1 2026 session id";
const ECHOES: &str = "homing v1 2026 echo";
const KEY_ID: &str = "homing v1 2026 key id";

/// The longest key file that is read; a longer one is certainly no key.
const FILE_LEN_MAX: u64 = 4096;

/// Everything that is derived from the POP's key.
#[derive(Clone)]
pub struct Keys {
    /// Authenticates datagrams between hosts.
    pub(super) datagrams: [u8; 32],
    /// Hashes session tuples to ids.
    pub session: SessionKey,
    /// Sign echoes between kernels: what is asked is signed with the first, and
    /// either is accepted. One of zeros is none.
    pub echo: [SessionKey; 2],
    /// Names the key in each datagram, so that a host with another key is told
    /// apart from a forger.
    pub id: u8,
}

/// Why a key file was refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It could not be read.
    #[error(
        "cannot read the POP's key file {file}: {source}; create it with \
         `openssl rand -hex 32 > {file} && chmod 600 {file}` and copy it to every host of the POP",
        file = path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Other users can read or change it.
    #[error(
        "the POP's key file {file} is open to other users (mode {mode:04o}); run `chmod 600 {file}`",
        file = path.display()
    )]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It holds something else.
    #[error(
        "the POP's key file {} must hold 64 hexadecimal digits and nothing else, but {found}",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What it holds, without giving the key away.
        found: String,
    },
}

impl Keys {
    /// Reads a key file: 64 hexadecimal digits, readable by its owner alone.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let read_error = |source| KeyError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read_error)?;
        // The open file is examined, not the path: nobody can swap it meanwhile.
        let mode = file.metadata().map_err(read_error)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Permissions {
                path: path.to_owned(),
                mode,
            });
        }
        let mut bytes = Vec::new();
        file.take(FILE_LEN_MAX)
            .read_to_end(&mut bytes)
            .map_err(read_error)?;
        let master = parse(bytes.trim_ascii()).map_err(|found| KeyError::Content {
            path: path.to_owned(),
            found,
        })?;
        Ok(Self::derive(&master))
    }

    /// Derives all keys from the POP's key.
    pub fn derive(master: &[u8; 32]) -> Self {
        Self {
            datagrams: blake3::derive_key(DATAGRAMS, master),
            session: siphash_key(SESSIONS, master),
            echo: [siphash_key(ECHOES, master), SessionKey::default()],
            id: blake3::derive_key(KEY_ID, master)[0],
        }
    }
}

/// A SipHash key: the first 16 bytes of what is derived.
fn siphash_key(context: &str, master: &[u8; 32]) -> SessionKey {
    let key = blake3::derive_key(context, master);
    let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|i| key[n * 8 + i]));
    SessionKey([word(0), word(1)])
}

impl std::fmt::Debug for Keys {
    /// Shows the key's public id alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys(id {:02x})", self.id)
    }
}

fn parse(text: &[u8]) -> Result<[u8; 32], String> {
    if text.len() != 64 {
        return Err(format!("it holds {} characters", text.len()));
    }
    let mut key = [0; 32];
    for (i, byte) in key.iter_mut().enumerate() {
        let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
        match (digit(text[2 * i]), digit(text[2 * i + 1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => {
                return Err(format!("character {} or {} is none", 2 * i + 1, 2 * i + 2));
            }
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    /// A file of its own for each test, removed at the end.
    struct KeyFile(PathBuf);

    impl KeyFile {
        fn new(name: &str, content: &str, mode: u32) -> Self {
            let path = std::env::temp_dir().join(format!("homing-{}-{name}", std::process::id()));
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            Self(path)
        }
    }

    impl Drop for KeyFile {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    #[test]
    fn key_file_is_read_with_or_without_a_newline() {
        let master: [u8; 32] = std::array::from_fn(|i| i as u8);
        let expected = Keys::derive(&master);
        for (name, content) in [("plain", KEY.to_owned()), ("newline", format!("{KEY}\n"))] {
            let file = KeyFile::new(name, &content, 0o600);
            let keys = Keys::read(&file.0).unwrap();
            assert_eq!(keys.datagrams, expected.datagrams);
            assert_eq!(keys.session, expected.session);
            assert_eq!(keys.id, expected.id);
        }
    }

    #[test]
    fn key_file_open_to_others_is_refused() {
        for mode in [0o644, 0o640, 0o604, 0o620] {
            let file = KeyFile::new(&format!("mode{mode:o}"), KEY, mode);
            let error = Keys::read(&file.0).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_showing_it() {
        for (name, content) in [
            ("short", &KEY[2..]),
            ("empty", ""),
            ("letter", &KEY.replace("0a", "0g")),
        ] {
            let file = KeyFile::new(name, content, 0o600);
            let error = Keys::read(&file.0).unwrap_err().to_string();
            assert!(error.contains("64 hexadecimal digits"), "{error}");
            assert!(!error.contains("0001020304"), "{error}");
        }
    }

    #[test]
    fn missing_key_file_says_how_to_make_one() {
        let error = Keys::read(Path::new("/nonexistent/pop.key")).unwrap_err();
        assert!(error.to_string().contains("openssl rand -hex 32"));
    }

    #[test]
    fn derived_keys_differ_from_each_other() {
        let keys = Keys::derive(&[7; 32]);
        let session = keys.session.0.map(u64::to_le_bytes).concat();
        assert_ne!(keys.datagrams[..16], session[..]);
        assert!(keys.echo[0] != keys.session);
        assert_ne!(keys.datagrams, [7; 32]);
        assert_ne!(Keys::derive(&[8; 32]).datagrams, keys.datagrams);
    }
}
