//! Connections' states on the target, kept for an agent that may have to go on from them.
//!
//! A restored socket is not the whole of a connection: what was never sent is written once
//! it has left repair mode. An agent that is killed before that leaves the socket with the
//! application, and the rest here: one file for each session that is on its way to this
//! host, in a folder that only the agent can look into, on a file system that lives as long
//! as the kernel and its sockets do.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::migration::MoveId;

/// The states that are kept.
#[derive(Debug)]
pub(super) struct Kept(PathBuf);

impl Kept {
    /// Opens the folder, makes it if it is missing, and removes what belongs to none of
    /// these moves.
    pub fn open(folder: &Path, moves: &[MoveId]) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let names: Vec<_> = moves.iter().map(|id| name(*id)).collect();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !names.iter().any(|name| **name == *entry.file_name()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self(folder.to_owned()))
    }

    /// Keeps the state of a move.
    pub fn write(&self, id: MoveId, state: &[u8]) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(self.path(id))?;
        io::Write::write_all(&mut file, state)
    }

    /// The state of a move.
    pub fn read(&self, id: MoveId) -> io::Result<Vec<u8>> {
        fs::read(self.path(id))
    }

    /// The move is over.
    pub fn remove(&self, id: MoveId) {
        if let Err(error) = fs::remove_file(self.path(id))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(
                %error, file = %self.path(id).display(),
                fix = "nothing, unless it goes on: the next start removes it; then look at /run (`df /run`)",
                "cannot remove a connection's state"
            );
        }
    }

    fn path(&self, id: MoveId) -> PathBuf {
        self.0.join(name(id))
    }
}

fn name(id: MoveId) -> String {
    format!("{}-{:016x}", id.source, id.number)
}

#[cfg(test)]
mod tests {
    use homing_common::host::HostId;

    use super::*;

    #[test]
    fn a_state_is_there_until_its_move_is_over_and_no_longer_than_its_journal() {
        let folder = std::env::temp_dir().join(format!("homing-kept-{}", std::process::id()));
        let id = |number| MoveId {
            source: HostId(7),
            number,
        };
        let kept = Kept::open(&folder, &[]).unwrap();
        kept.write(id(1), b"one").unwrap();
        kept.write(id(2), b"two").unwrap();
        kept.write(id(2), b"2").unwrap();
        let kept = Kept::open(&folder, &[id(2)]).unwrap();
        assert!(kept.read(id(1)).is_err());
        assert_eq!(kept.read(id(2)).unwrap(), b"2");
        kept.remove(id(2));
        kept.remove(id(2));
        assert!(kept.read(id(2)).is_err());
        fs::remove_dir(folder).unwrap();
    }
}
