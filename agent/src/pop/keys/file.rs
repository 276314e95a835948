//! The file that the POP's keys are in, and how it changes in a rotation.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::key_id;

/// The longest key file that is read; a longer one is certainly no key.
const FILE_LEN_MAX: u64 = 4096;

/// A key: 32 random bytes.
pub type Key = [u8; 32];

/// What a key file holds.
///
/// Either one line of 64 hexadecimal digits, a key for everything; or lines of a
/// name and a key each. Empty lines and lines that begin with `#` mean nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// `sign`, `next`, `old`: sign what members send.
    pub sign: Keyring,
    /// `session`, `next-session`, `old-session`: hash session tuples to ids. They stay
    /// when those that sign change.
    pub session: Keyring,
    /// `fragments`: chooses where fragments meet. None: the key that sessions are looked
    /// up by. A rotation of that one leaves it as it was.
    pub fragments: Option<Key>,
}

/// What a key is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Signing what members send.
    Sign,
    /// Hashing session tuples to ids.
    Session,
}

/// A key, and during a rotation the one beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Keyring {
    /// The one in force here: signs, or hashes what this host looks up.
    pub key: Key,
    /// Accepted beside it, or told by as well.
    pub other: Option<Other>,
}

/// The key that stands beside the one in force.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// `next`: will be in force after this one.
    Next(Key),
    /// `old`: was in force before this one.
    Old(Key),
}

impl Other {
    /// The key.
    pub const fn key(&self) -> &Key {
        match self {
            Self::Next(key) | Self::Old(key) => key,
        }
    }
}

impl Keyring {
    /// One key alone.
    pub const fn of(key: Key) -> Self {
        Self { key, other: None }
    }

    /// The key beside the one in force.
    pub fn other(&self) -> Option<&Key> {
        self.other.as_ref().map(Other::key)
    }

    fn begin(self) -> io::Result<Result<Self, Untimely>> {
        Ok(match self.other {
            Some(Other::Next(_)) => Err(Untimely::Begun),
            Some(Other::Old(_)) => Err(Untimely::NotFinished),
            None => loop {
                let next = random()?;
                if key_id(&next) != key_id(&self.key) {
                    break Ok(Self {
                        other: Some(Other::Next(next)),
                        ..self
                    });
                }
            },
        })
    }

    fn promote(self) -> Result<Self, Untimely> {
        match self.other {
            Some(Other::Next(next)) => Ok(Self {
                key: next,
                other: Some(Other::Old(self.key)),
            }),
            Some(Other::Old(_)) => Err(Untimely::Promoted),
            None => Err(Untimely::NotBegun),
        }
    }

    fn finish(self) -> Result<Self, Untimely> {
        match self.other {
            Some(Other::Old(_)) => Ok(Self::of(self.key)),
            Some(Other::Next(_)) => Err(Untimely::NotPromoted),
            None => Err(Untimely::Idle),
        }
    }
}

/// Why a step of a rotation is not the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Untimely {
    /// The first step has been done.
    Begun,
    /// The rotation before has not ended.
    NotFinished,
    /// The second step has been done.
    Promoted,
    /// The first step is next.
    NotBegun,
    /// The second step is next.
    NotPromoted,
    /// There is nothing to finish.
    Idle,
}

/// Why a key file was refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It could not be read.
    #[error(
        "cannot read the POP's key file {file}: {source}; make one with `homing key new --file {file}` \
         and copy it to every host of the POP",
        file = path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It could not be written.
    #[error("cannot write the POP's key file {}: {source}", path.display())]
    Write {
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
        "the POP's key file {} must hold a key, 64 hexadecimal digits, or lines such as `sign KEY`, \
         but {found}",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What it holds, without giving a key away.
        found: String,
    },
}

impl KeyFile {
    /// A file with one new key for everything.
    pub fn new() -> io::Result<Self> {
        let key = random()?;
        Ok(Self::of(key))
    }

    /// A file with one key for everything.
    pub const fn of(key: Key) -> Self {
        Self {
            sign: Keyring::of(key),
            session: Keyring::of(key),
            fragments: None,
        }
    }

    /// Reads a file that only its owner can read or change.
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
        Self::parse(&String::from_utf8_lossy(&bytes)).map_err(|found| KeyError::Content {
            path: path.to_owned(),
            found,
        })
    }

    /// Writes a file that only its owner can read or change: the whole of it, or
    /// nothing. One that exists is replaced.
    pub fn write(&self, path: &Path) -> Result<(), KeyError> {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let write = || {
            let _ = fs::remove_file(&new);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&new)?;
            file.write_all(self.to_string().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)?;
            // The step is done once the name is on the disk, too.
            let folder = path.parent().filter(|folder| *folder != Path::new(""));
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|source| KeyError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// Reads the text of a file, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().map(str::trim);
        let lines: Vec<_> = lines
            .enumerate()
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(n, line)| (n + 1, line))
            .collect();
        if let [(line, only)] = lines[..]
            && !only.contains(char::is_whitespace)
        {
            return Ok(Self::of(parse_key(line, only)?));
        }
        let mut named: [Option<Key>; NAMES.len()] = Default::default();
        for &(line, text) in &lines {
            let (name, key) = text
                .split_once(char::is_whitespace)
                .ok_or_else(|| format!("line {line} has no name before its key"))?;
            let place = NAMES.iter().position(|known| *known == name);
            let place =
                place.ok_or_else(|| format!("line {line} names none of {}", NAMES.join(", ")))?;
            if named[place].is_some() {
                return Err(format!("line {line} is a second `{name}`"));
            }
            named[place] = Some(parse_key(line, key.trim())?);
        }
        let [
            sign,
            next,
            old,
            session,
            next_session,
            old_session,
            fragments,
        ] = named;
        Ok(Self {
            sign: keyring(sign, next, old, Use::Sign)?,
            session: keyring(session, next_session, old_session, Use::Session)?,
            fragments,
        })
    }

    /// First step of a rotation: a new key beside the one in force.
    pub fn begin(&self, which: Use) -> io::Result<Result<Self, Untimely>> {
        let begun = self.keyring(which).begin()?;
        Ok(begun.map(|keyring| self.with(which, keyring)))
    }

    /// Second step: the new key is in force, and the old one beside it.
    pub fn promote(&self, which: Use) -> Result<Self, Untimely> {
        let promoted = self.keyring(which).promote()?;
        Ok(self.with(which, promoted))
    }

    /// Last step: the old key goes.
    pub fn finish(&self, which: Use) -> Result<Self, Untimely> {
        let finished = self.keyring(which).finish()?;
        Ok(self.with(which, finished))
    }

    /// The key that chooses where fragments meet.
    pub fn fragments(&self) -> &Key {
        self.fragments.as_ref().unwrap_or(&self.session.key)
    }

    /// The keys for a use.
    pub fn keyring(&self, which: Use) -> Keyring {
        match which {
            Use::Sign => self.sign,
            Use::Session => self.session,
        }
    }

    fn with(&self, which: Use, keyring: Keyring) -> Self {
        match which {
            Use::Sign => Self {
                sign: keyring,
                ..self.clone()
            },
            // Hosts of this step and of the one before agree on where fragments meet.
            Use::Session => Self {
                session: keyring,
                fragments: Some(*self.fragments()),
                ..self.clone()
            },
        }
    }
}

const NAMES: [&str; 7] = [
    "sign",
    "next",
    "old",
    "session",
    "next-session",
    "old-session",
    "fragments",
];

impl Use {
    /// What its lines are called: the key in force, the next and the old one.
    const fn names(self) -> [&'static str; 3] {
        match self {
            Self::Sign => ["sign", "next", "old"],
            Self::Session => ["session", "next-session", "old-session"],
        }
    }
}

/// What the lines for one use say.
fn keyring(
    key: Option<Key>,
    next: Option<Key>,
    old: Option<Key>,
    which: Use,
) -> Result<Keyring, String> {
    let [in_force, next_name, old_name] = which.names();
    let keyring = Keyring {
        key: key.ok_or_else(|| format!("it has no line `{in_force}`"))?,
        other: match (next, old) {
            (Some(_), Some(_)) => {
                return Err(format!("it has both `{next_name}` and `{old_name}`"));
            }
            (Some(key), None) => Some(Other::Next(key)),
            (None, Some(key)) => Some(Other::Old(key)),
            (None, None) => None,
        },
    };
    let id = key_id(&keyring.key);
    if keyring.other().is_some_and(|other| key_id(other) == id) {
        return Err(format!(
            "its two keys for `{in_force}` have the same id, {id:02x}; make another one"
        ));
    }
    Ok(keyring)
}

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::of(self.sign.key) {
            return writeln!(f, "{}", hex(&self.sign.key));
        }
        for which in [Use::Sign, Use::Session] {
            let ([in_force, next, old], keyring) = (which.names(), self.keyring(which));
            writeln!(f, "{in_force} {}", hex(&keyring.key))?;
            match &keyring.other {
                Some(Other::Next(key)) => writeln!(f, "{next} {}", hex(key))?,
                Some(Other::Old(key)) => writeln!(f, "{old} {}", hex(key))?,
                None => {}
            }
        }
        match &self.fragments {
            Some(key) => writeln!(f, "fragments {}", hex(key)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for KeyFile {
    /// Shows the keys' public ids alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyFile(")?;
        for which in [Use::Sign, Use::Session] {
            let ([in_force, ..], keyring) = (which.names(), self.keyring(which));
            write!(f, "{in_force} {:02x}, ", key_id(&keyring.key))?;
            if let Some(other) = keyring.other() {
                write!(f, "other {:02x}, ", key_id(other))?;
            }
        }
        write!(f, "fragments {:02x})", key_id(self.fragments()))
    }
}

fn random() -> io::Result<Key> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(key)
}

fn hex(key: &Key) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_key(line: usize, text: &str) -> Result<Key, String> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return Err(format!(
            "line {line} has {} characters where a key has 64",
            text.len()
        ));
    }
    let mut key = [0; 32];
    for (i, byte) in key.iter_mut().enumerate() {
        let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
        match (digit(text[2 * i]), digit(text[2 * i + 1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => {
                return Err(format!(
                    "in line {line} digit {} or {} of the key is none",
                    2 * i + 1,
                    2 * i + 2
                ));
            }
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests;
