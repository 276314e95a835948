//! Reading the key file again, while everything runs.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::{
    admin::api,
    datapath::control::ControlMap,
    gossip::task::Handle,
    mux::Carriers,
    pop::keys::{KeyFile, Keys},
};

/// What a reload changes.
pub(super) struct Reload {
    key_file: PathBuf,
    control: ControlMap,
    gossip: Handle,
    carriers: Carriers,
    /// The file as it is in force: one reload at a time.
    file: Mutex<KeyFile>,
}

impl Reload {
    pub fn new(
        key_file: PathBuf,
        file: KeyFile,
        control: ControlMap,
        gossip: Handle,
        carriers: Carriers,
    ) -> Self {
        Self {
            key_file,
            control,
            gossip,
            carriers,
            file: Mutex::new(file),
        }
    }

    /// Puts in force what the key file holds now.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is wrong, or its keys of session ids or of fragments
    /// are others: then nothing changes.
    pub async fn run(&self) -> Result<api::Reloaded> {
        let mut present = self.file.lock().await;
        let path = self.key_file.clone();
        let file = spawn_blocking(move || KeyFile::read(&path)).await??;
        let keys = Keys::of(&file);
        ensure!(
            file.session == present.session,
            "the keys of session ids in {} are others: restart this agent to put them in force \
             (its sessions stay), or keep the lines `session`, `next-session` and `old-session` \
             (or, where there was one bare key, add `session KEY` with it)",
            self.key_file.display()
        );
        ensure!(
            file.fragments() == present.fragments(),
            "the key of fragments in {} is another: restart this agent to put it in force (its \
             sessions stay), or keep the line `fragments`",
            self.key_file.display()
        );
        let changed = *present != file;
        if changed {
            self.control.set_echo_keys(keys.echo);
            self.carriers.set_keys(&keys);
            self.gossip
                .rekey(keys.clone())
                .await
                .context("the agent is stopping")?;
            tracing::info!(keys = ?keys, "the POP's keys are in force");
            *present = file;
        }
        Ok(api::Reloaded {
            keys: names((keys.id(), keys.other_id()), keys.session_ids),
            changed,
        })
    }
}

/// Keys as the API names them.
pub(super) fn names((signs, accepts): (u8, Option<u8>), session: [u8; 2]) -> api::Keys {
    let [session, session_other] = session;
    api::Keys {
        signs: name(signs),
        accepts: accepts.map(name),
        session: name(session),
        session_other: (session_other != session).then(|| name(session_other)),
    }
}

/// The keys of session ids, as the API names them.
pub(super) fn session_keys([session, other]: [u8; 2]) -> Vec<String> {
    let mut names = vec![name(session), name(other)];
    names.dedup();
    names
}

/// A key's public id.
pub(super) fn name(id: u8) -> String {
    format!("{id:02x}")
}
