//! Reading the key file again, while everything runs.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use homing_common::session::SessionKey;
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::{
    admin::api,
    datapath::control::ControlMap,
    gossip::task::Handle,
    pop::keys::{KeyFile, Keys},
};

/// What a reload changes.
pub(super) struct Reload {
    key_file: PathBuf,
    session: SessionKey,
    control: ControlMap,
    gossip: Handle,
    /// The file as it is in force: one reload at a time.
    file: Mutex<KeyFile>,
}

impl Reload {
    pub fn new(
        key_file: PathBuf,
        file: KeyFile,
        session: SessionKey,
        control: ControlMap,
        gossip: Handle,
    ) -> Self {
        Self {
            key_file,
            session,
            control,
            gossip,
            file: Mutex::new(file),
        }
    }

    /// Puts in force what the key file holds now.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is wrong, or its `session` is another: then
    /// nothing changes.
    pub async fn run(&self) -> Result<api::Reloaded> {
        let mut present = self.file.lock().await;
        let path = self.key_file.clone();
        let file = spawn_blocking(move || KeyFile::read(&path)).await??;
        let keys = Keys::of(&file);
        ensure!(
            keys.session == self.session,
            "the key of session ids in {} is another: ids would change under open sessions; keep \
             the line `session` (or, where there was one bare key, add `session KEY` with it), or \
             restart the agents of all hosts together",
            self.key_file.display()
        );
        let changed = *present != file;
        if changed {
            self.control.set_echo_keys(keys.echo);
            self.gossip
                .rekey(keys.clone())
                .await
                .context("the agent is stopping")?;
            tracing::info!(keys = ?keys, "the POP's keys are in force");
            *present = file;
        }
        Ok(api::Reloaded {
            keys: names(keys.id(), keys.other_id()),
            changed,
        })
    }
}

/// Keys as the API names them.
pub(super) fn names(signs: u8, accepts: Option<u8>) -> api::Keys {
    api::Keys {
        signs: name(signs),
        accepts: accepts.map(name),
    }
}

/// A key's public id.
pub(super) fn name(id: u8) -> String {
    format!("{id:02x}")
}
