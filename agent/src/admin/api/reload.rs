//! The configuration: what of it is in force, and what a reload changes.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::Keys;
use crate::config::{self, Config};

/// `POST /reload`: status 200.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The configuration that was read.
    pub path: PathBuf,
    /// Whether nothing was put in force, and this is what would be.
    pub dry_run: bool,
    /// Whether anything differs from before.
    pub changed: bool,
    /// The keys of the configuration that do.
    pub changes: Vec<Change>,
    /// The POP's keys as they are used from now on.
    pub keys: Keys,
    /// Whether the key file holds something else than before.
    pub keys_changed: bool,
}

/// A key of the configuration that holds something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its name, such as `pop.leave_hold`.
    pub key: String,
    /// What it held.
    pub from: String,
    /// What it holds now.
    pub to: String,
    /// Whether it counts from the agent's next start on only.
    pub needs_restart: bool,
}

impl Change {
    /// The same, as the configuration tells it.
    pub fn of(change: &config::Change) -> Self {
        Self {
            key: change.key.to_owned(),
            from: change.from.clone(),
            to: change.to.clone(),
            needs_restart: change.takes == config::Takes::Restart,
        }
    }
}

/// `GET /config`: what is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// The configuration that a reload reads.
    pub path: PathBuf,
    /// Whether `admin.socket` was given on the command line.
    pub socket_given: bool,
    /// What each key holds, by its name.
    pub keys: BTreeMap<String, String>,
}

impl InForce {
    /// That of a configuration.
    pub fn of(config: &Config) -> Self {
        let keys = config::KEYS.iter();
        Self {
            path: config.path.clone(),
            socket_given: config.socket_given,
            keys: keys
                .map(|key| (key.name.to_owned(), key.value(config)))
                .collect(),
        }
    }
}

/// Something that is wrong in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1; zero where the file as a whole is meant.
    pub line: usize,
    /// The key, with its sections.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}
