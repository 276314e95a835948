//! `homing key`: the POP's key file, made and changed step by step.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use serde::Serialize;

use super::{
    Failure,
    args::{Cli, KeyStep},
};
use crate::{
    config::Config,
    pop::keys::{KeyError, KeyFile, Other, key_id},
};

/// What the file holds, without giving a key away.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The file.
    file: PathBuf,
    /// Public id of the key that signs.
    signs: String,
    /// Public id of the key that will sign.
    next: Option<String>,
    /// Public id of the key that signed before, and is still accepted.
    old: Option<String>,
    /// What to do now.
    then: &'static str,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: key {} signs", self.file.display(), self.signs)?;
        if let Some(next) = &self.next {
            write!(f, ", {next} is accepted and will sign next")?;
        }
        if let Some(old) = &self.old {
            write!(f, ", {old} is still accepted")?;
        }
        write!(f, "\n{}", self.then)
    }
}

/// Does a step.
pub(super) fn key(cli: &Cli, step: &KeyStep, file: Option<&Path>) -> Result<Report, Failure> {
    let path = match file {
        Some(file) => file.to_owned(),
        None => Config::load(&cli.config)?.pop.key_file,
    };
    let refused = |why: &str| Failure::Other(anyhow!("{}: {why}", path.display()));
    let read = || KeyFile::read(&path).map_err(failed);
    let changed = match step {
        KeyStep::New => {
            if path.exists() {
                return Err(refused(
                    "it exists; `homing key begin` changes a POP's key without downtime",
                ));
            }
            Some(KeyFile::new().map_err(anyhow::Error::from)?)
        }
        KeyStep::Show => None,
        KeyStep::Begin => {
            let begun = read()?.begin().map_err(anyhow::Error::from)?;
            Some(begun.map_err(refused)?)
        }
        KeyStep::Promote => Some(read()?.promote().map_err(refused)?),
        KeyStep::Finish => Some(read()?.finish().map_err(refused)?),
    };
    if let Some(changed) = &changed {
        changed.write(&path).map_err(failed)?;
    }
    let file = match changed {
        Some(changed) => changed,
        None => read()?,
    };
    Ok(report(path, step, &file))
}

fn failed(error: KeyError) -> Failure {
    anyhow::Error::from(error).into()
}

fn report(path: PathBuf, step: &KeyStep, file: &KeyFile) -> Report {
    let name = |key| format!("{:02x}", key_id(key));
    let (next, old) = match &file.other {
        Some(Other::Next(key)) => (Some(name(key)), None),
        Some(Other::Old(key)) => (None, Some(name(key))),
        None => (None, None),
    };
    let then = match (step, &file.other) {
        (KeyStep::New, _) => "copy it to every host of the POP, then start the agents",
        (_, Some(Other::Next(_))) => {
            "copy it to every host of the POP and reload each agent (`homing reload`); when all \
             have done so: `homing key promote`"
        }
        (_, Some(Other::Old(_))) => {
            "copy it to every host of the POP and reload each agent (`homing reload`); when \
             `homing hosts --json` shows no host whose key is the old one: `homing key finish`"
        }
        (KeyStep::Show, None) => "no rotation is under way; `homing key begin` begins one",
        (_, None) => "copy it to every host of the POP and reload each agent (`homing reload`)",
    };
    Report {
        file: path,
        signs: name(&file.sign),
        next,
        old,
        then,
    }
}
