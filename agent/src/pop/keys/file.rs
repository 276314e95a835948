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
    /// `sign`: signs what this host sends.
    pub sign: Key,
    /// Accepted beside it, during a rotation.
    pub other: Option<Other>,
    /// `session`: hashes session tuples to ids. It stays when the others change.
    pub session: Key,
}

/// The key that is accepted beside the one that signs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Other {
    /// `next`: will sign after this one.
    Next(Key),
    /// `old`: signed before this one.
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
            sign: key,
            other: None,
            session: key,
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
        let [sign, next, old, session] = named;
        let file = Self {
            sign: sign.ok_or("it has no line `sign`")?,
            other: match (next, old) {
                (Some(_), Some(_)) => return Err("it has both `next` and `old`".to_owned()),
                (Some(key), None) => Some(Other::Next(key)),
                (None, Some(key)) => Some(Other::Old(key)),
                (None, None) => None,
            },
            session: session.ok_or("it has no line `session`")?,
        };
        if let Some(other) = &file.other
            && key_id(other.key()) == key_id(&file.sign)
        {
            return Err(format!(
                "its two keys have the same id, {:02x}; make another one",
                key_id(&file.sign)
            ));
        }
        Ok(file)
    }

    /// First step of a rotation: a new key is accepted.
    pub fn begin(&self) -> io::Result<Result<Self, &'static str>> {
        Ok(match self.other {
            Some(Other::Next(_)) => Err(
                "a rotation has begun already: copy this file to all hosts, reload all agents, \
                 then `homing key promote`",
            ),
            Some(Other::Old(_)) => Err("the last rotation is not over: `homing key finish` first"),
            None => loop {
                let next = random()?;
                if key_id(&next) != key_id(&self.sign) {
                    break Ok(Self {
                        other: Some(Other::Next(next)),
                        ..self.clone()
                    });
                }
            },
        })
    }

    /// Second step: the new key signs, and the old one is accepted.
    pub fn promote(&self) -> Result<Self, &'static str> {
        match self.other {
            Some(Other::Next(next)) => Ok(Self {
                sign: next,
                other: Some(Other::Old(self.sign)),
                session: self.session,
            }),
            Some(Other::Old(_)) => Err("the new key signs already: `homing key finish` is next"),
            None => Err("no rotation has begun: `homing key begin` is first"),
        }
    }

    /// Last step: the old key is refused.
    pub fn finish(&self) -> Result<Self, &'static str> {
        match self.other {
            Some(Other::Old(_)) => Ok(Self {
                other: None,
                ..self.clone()
            }),
            Some(Other::Next(_)) => Err(
                "the new key does not sign yet: `homing key promote` is next; to give the rotation \
                 up, remove the line `next` on all hosts",
            ),
            None => Err("no rotation is under way"),
        }
    }
}

const NAMES: [&str; 4] = ["sign", "next", "old", "session"];

impl fmt::Display for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.other.is_none() && self.session == self.sign {
            return writeln!(f, "{}", hex(&self.sign));
        }
        writeln!(f, "sign {}", hex(&self.sign))?;
        match &self.other {
            Some(Other::Next(key)) => writeln!(f, "next {}", hex(key))?,
            Some(Other::Old(key)) => writeln!(f, "old {}", hex(key))?,
            None => {}
        }
        writeln!(f, "session {}", hex(&self.session))
    }
}

impl fmt::Debug for KeyFile {
    /// Shows the keys' public ids alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyFile(sign {:02x}", key_id(&self.sign))?;
        if let Some(other) = &self.other {
            write!(f, ", other {:02x}", key_id(other.key()))?;
        }
        f.write_str(")")
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
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;
    use crate::admin::fake::Folder;

    const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

    fn key_of_line() -> Key {
        std::array::from_fn(|i| i as u8)
    }

    fn stored(content: &str, mode: u32) -> (Folder, PathBuf) {
        let folder = Folder::new();
        let path = folder.0.join("pop.key");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    #[test]
    fn a_bare_key_is_a_key_for_everything() {
        for content in [KEY.to_owned(), format!("# a key\n\n{KEY}\n")] {
            let (_folder, path) = stored(&content, 0o600);
            assert_eq!(KeyFile::read(&path).unwrap(), KeyFile::of(key_of_line()));
        }
    }

    #[test]
    fn a_file_open_to_others_is_refused() {
        for mode in [0o644, 0o640, 0o604, 0o620] {
            let (_folder, path) = stored(KEY, mode);
            let error = KeyFile::read(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn what_is_no_key_file_is_refused_without_showing_a_key() {
        let other = KEY.replace("00", "ff");
        for (content, why) in [
            (KEY[2..].to_owned(), "62 characters"),
            (String::new(), "no line `sign`"),
            (KEY.replace("0a", "0g"), "digit 21 or 22"),
            (format!("sign {KEY}\n"), "no line `session`"),
            (format!("{KEY}\n{other}\n"), "line 1 has no name"),
            (format!("sign {KEY}\nsing {KEY}\n"), "line 2 names none of"),
            (
                format!("sign {KEY}\nsign {KEY}\n"),
                "line 2 is a second `sign`",
            ),
            (
                format!("sign {KEY}\nnext {other}\nold {other}\nsession {KEY}"),
                "both `next` and `old`",
            ),
            (
                format!("sign {KEY}\nnext {KEY}\nsession {KEY}"),
                "the same id",
            ),
        ] {
            let (_folder, path) = stored(&content, 0o600);
            let error = KeyFile::read(&path).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("0001020304"), "{error}");
        }
    }

    #[test]
    fn a_missing_file_says_how_to_make_one() {
        let error = KeyFile::read(Path::new("/nonexistent/pop.key")).unwrap_err();
        assert!(error.to_string().contains("homing key new"));
    }

    #[test]
    fn a_rotation_has_three_steps_in_order_and_keeps_the_session_key() {
        let first = KeyFile::of(key_of_line());
        assert!(first.promote().is_err() && first.finish().is_err());
        let begun = first.begin().unwrap().unwrap();
        let Some(Other::Next(next)) = begun.other else {
            panic!("{begun:?}");
        };
        assert_eq!(begun.sign, first.sign);
        assert!(begun.begin().unwrap().is_err() && begun.finish().is_err());
        let promoted = begun.promote().unwrap();
        assert_eq!(promoted.sign, next);
        assert!(promoted.other == Some(Other::Old(first.sign)));
        assert!(promoted.begin().unwrap().is_err() && promoted.promote().is_err());
        let finished = promoted.finish().unwrap();
        assert!(finished.other.is_none() && finished.sign == next);
        for file in [&begun, &promoted, &finished] {
            assert_eq!(file.session, first.session);
        }
        assert!(finished.begin().unwrap().is_ok());
    }

    #[test]
    fn a_file_is_replaced_whole_and_for_its_owner_alone() {
        let (_folder, path) = stored(KEY, 0o600);
        let begun = KeyFile::read(&path).unwrap().begin().unwrap().unwrap();
        begun.write(&path).unwrap();
        assert_eq!(KeyFile::read(&path).unwrap(), begun);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    proptest! {
        #[test]
        fn text_and_back(sign: Key, other: Key, session: Key, form in 0..3) {
            prop_assume!(key_id(&sign) != key_id(&other));
            let other = [None, Some(Other::Next(other)), Some(Other::Old(other))][form as usize];
            let file = KeyFile { sign, other, session };
            prop_assert_eq!(KeyFile::parse(&file.to_string()), Ok(file));
        }

        #[test]
        fn no_text_panics(text in "(sign|next|old|session|#|[0-9a-f]{0,64}|\\PC|\n| ){0,12}") {
            let _ = KeyFile::parse(&text);
        }
    }

    #[test]
    fn writing_a_file_touches_no_other() {
        let folder = std::env::temp_dir().join(format!("homing-keys-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let (path, other) = (folder.join("pop.key"), folder.join("pop.new"));
        fs::write(&other, "somebody's").unwrap();
        KeyFile::of([1; 32]).write(&path).unwrap();
        KeyFile::of([2; 32]).write(&path).unwrap();
        assert!(KeyFile::read(&path).unwrap() == KeyFile::of([2; 32]));
        assert_eq!(fs::read_to_string(&other).unwrap(), "somebody's");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
    }
}
