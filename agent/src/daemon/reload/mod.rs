//! Reading the configuration and the key file again, while everything runs.
//!
//! All that differs from what is in force is put in force, or nothing is: a file that is
//! wrong, a key that needs a restart ([`crate::config::KEYS`]) and a step that fails keep
//! everything as it was, and say why. One reload at a time; who asked may go away in the
//! midst of one.

mod put;
mod sequence;

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use tokio::{
    sync::{Mutex, Semaphore, watch},
    task::spawn_blocking,
};

use crate::{
    admin::{Refusal, api},
    config::{Change, Config, Problems, Takes},
    pop::keys::{KeyFile, Keys},
};
use put::Round;
pub(super) use put::{Changed, Readers, Values, seeds};
use sequence::{Failed, STEPS, Step, all_or_none, steps};

/// Puts in force what the files say.
pub(super) struct Reload(Arc<Shared>);

/// One reload, and one more that waits for it and reads the files afterwards: whoever asks
/// for another is answered by that one.
const TURNS: usize = 2;

struct Shared {
    turns: Arc<Semaphore>,
    config: watch::Receiver<Arc<Config>>,
    /// Held for the time of a reload.
    state: Mutex<State>,
}

struct State {
    changed: Changed,
    /// The key file as it is in force.
    file: KeyFile,
}

/// Why nothing has changed.
enum Unchanged {
    /// The configuration is wrong.
    Wrong(Problems),
    /// What needs a restart; and all that differs.
    Restart(Vec<Change>),
    /// Something failed.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Unchanged {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error.context("nothing has changed"))
    }
}

impl Reload {
    pub fn new(changed: Changed, file: KeyFile) -> Self {
        Self(Arc::new(Shared {
            turns: Arc::new(Semaphore::new(TURNS)),
            config: changed.values.config.subscribe(),
            state: Mutex::new(State { changed, file }),
        }))
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.0.config.borrow().clone()
    }

    /// Puts in force what the files say now; `dry`: only says what would change.
    ///
    /// # Errors
    ///
    /// Nothing has changed, and why.
    pub async fn run(&self, dry: bool) -> Result<api::Reloaded, Refusal> {
        let shared = self.0.clone();
        let Ok(turn) = shared.turns.clone().try_acquire_owned() else {
            let why = "a reload is under way, and another one waits for it, which will read the \
                       files as they are now: see the agent's log for what comes of it";
            return Err(Refusal::Conflict(why.to_owned()));
        };
        // Who asked may go away: what has begun is brought to its end.
        let reload = tokio::spawn(async move {
            let _turn = turn;
            shared.run(dry).await
        });
        reload
            .await
            .context("the reload was not brought to its end")?
    }
}

impl Shared {
    async fn run(&self, dry: bool) -> Result<api::Reloaded, Refusal> {
        let mut state = self.state.lock().await;
        let path = self.config.borrow().path.clone();
        let unchanged = match self.reload(&mut state, dry).await {
            Ok(reloaded) => return Ok(reloaded),
            Err(unchanged) => unchanged,
        };
        let refusal = match unchanged {
            Unchanged::Wrong(problems) => Refusal::Config(problems),
            Unchanged::Restart(changes) => Refusal::Restart { path, changes },
            Unchanged::Failed(error) => Refusal::Failed(error),
        };
        if !dry {
            for line in refusal.to_string().lines() {
                tracing::error!(
                    why = line,
                    fix = "put right what this line names, and reload again; unless it says otherwise everything goes on as it was",
                    "the configuration is not reloaded"
                );
            }
        }
        Err(refusal)
    }

    async fn reload(&self, state: &mut State, dry: bool) -> Result<api::Reloaded, Unchanged> {
        let present = self.config.borrow().clone();
        let again = present.clone();
        let read = spawn_blocking(move || again.again()).await;
        let config = read.context("cannot read the configuration")?;
        let config = Arc::new(config.map_err(Unchanged::Wrong)?);
        let changes = present.differences(&config);
        if changes.iter().any(|change| change.takes == Takes::Restart) {
            return Err(Unchanged::Restart(changes));
        }
        let file = key_file(&config, &state.file).await?;
        let keys = [Keys::of(&state.file), Keys::of(&file)];
        let keys_changed = state.file != file;
        let [before, after] = &keys;
        let told = api::Reloaded {
            path: config.path.clone(),
            dry_run: dry,
            changed: keys_changed || !changes.is_empty(),
            changes: changes.iter().map(api::Change::of).collect(),
            keys: names((after.id(), after.other_id()), after.session_ids),
            keys_changed,
        };
        if dry || !told.changed {
            return Ok(told);
        }
        let names: Vec<_> = changes.iter().map(|change| change.key).collect();
        let differ = keys_changed.then_some([before, after]);
        let mut round = Round::new(&mut state.changed, config, differ);
        let done = all_or_none(&mut round, &steps(&names, keys_changed)).await;
        done.map_err(failed)?;
        round.finish().await;
        state.file = file;
        for Change { key, from, to, .. } in &changes {
            tracing::info!(key, %from, %to, "the configuration has changed");
        }
        Ok(told)
    }
}

/// Reads the key file, and refuses what only a restart puts in force.
async fn key_file(config: &Config, present: &KeyFile) -> Result<KeyFile> {
    let path = config.pop.key_file.clone();
    let shown = path.display().to_string();
    let file = spawn_blocking(move || KeyFile::read(&path)).await??;
    ensure!(
        file.session == present.session,
        "the keys of session ids in {shown} are others: restart this agent to put them in force \
         (its sessions stay), or keep the lines `session`, `next-session` and `old-session` \
         (or, where there was one bare key, add `session KEY` with it)"
    );
    ensure!(
        file.fragments() == present.fragments(),
        "the key of fragments in {shown} is another: restart this agent to put it in force (its \
         sessions stay), or keep the line `fragments`"
    );
    Ok(file)
}

fn failed(failed: Failed<anyhow::Error>) -> Unchanged {
    let Failed { step, error, left } = failed;
    if left.is_empty() {
        return error.into();
    }
    let left = left
        .iter()
        .map(|(step, error)| format!("{}: {error:#}", keys_of(*step)));
    let left = left.collect::<Vec<_>>().join("; ");
    Unchanged::Failed(anyhow!(
        "{}: {error:#}; and what was done before it could not be taken back ({left}): restart this \
         agent (its sessions stay)",
        keys_of(step)
    ))
}

/// The keys that a step puts in force.
fn keys_of(step: Step) -> String {
    let keys = STEPS.iter().filter(|(one, _)| *one == step);
    keys.flat_map(|(_, keys)| *keys)
        .copied()
        .collect::<Vec<_>>()
        .join(", ")
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
