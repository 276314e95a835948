//! `homing key`: the POP's key file, made and changed step by step.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::anyhow;
use serde::Serialize;

use super::{
    Failure,
    args::{Cli, KeyStep, KeyUse},
};
use crate::{
    config::Config,
    pop::keys::{Key, KeyError, KeyFile, Keyring, Other, Untimely, Use, key_id},
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
    /// Public id of the key that sessions are looked up by.
    session: String,
    /// Public id of the key that they will be looked up by, and are told by as well.
    next_session: Option<String>,
    /// Public id of the key that they were looked up by, and are still told by as well.
    old_session: Option<String>,
    /// Public id of the key that chooses where fragments meet.
    fragments: String,
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
        write!(f, "; sessions are looked up by {}", self.session)?;
        if let Some(next) = &self.next_session {
            write!(f, ", told by {next} as well and looked up by it next")?;
        }
        if let Some(old) = &self.old_session {
            write!(f, ", still told by {old} as well")?;
        }
        write!(f, "; fragments meet by {}", self.fragments)?;
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
        KeyStep::Begin(of) => {
            let begun = read()?.begin(of.which()).map_err(anyhow::Error::from)?;
            Some(begun.map_err(|error| refused(untimely(error, of.which())))?)
        }
        KeyStep::Promote(of) => {
            let promoted = read()?.promote(of.which());
            Some(promoted.map_err(|error| refused(untimely(error, of.which())))?)
        }
        KeyStep::Finish(of) => {
            let finished = read()?.finish(of.which());
            Some(finished.map_err(|error| refused(untimely(error, of.which())))?)
        }
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

impl KeyUse {
    const fn which(&self) -> Use {
        match self.session {
            false => Use::Sign,
            true => Use::Session,
        }
    }
}

/// What to do instead of a step that is not the next one.
const fn untimely(error: Untimely, which: Use) -> &'static str {
    match (error, which) {
        (Untimely::Begun, Use::Sign) => {
            "a rotation has begun already: copy this file to all hosts, reload all agents, then \
             `homing key promote`"
        }
        (Untimely::Begun, Use::Session) => {
            "a rotation has begun already: copy this file to all hosts, restart all agents, then \
             `homing key promote --session`"
        }
        (Untimely::NotFinished, Use::Sign) => {
            "the last rotation is not over: `homing key finish` first"
        }
        (Untimely::NotFinished, Use::Session) => {
            "the last rotation is not over: `homing key finish --session` first"
        }
        (Untimely::Promoted, Use::Sign) => "the new key signs already: `homing key finish` is next",
        (Untimely::Promoted, Use::Session) => {
            "sessions are looked up by the new key already: `homing key finish --session` is next"
        }
        (Untimely::NotBegun, Use::Sign) => "no rotation has begun: `homing key begin` is first",
        (Untimely::NotBegun, Use::Session) => {
            "no rotation has begun: `homing key begin --session` is first"
        }
        (Untimely::NotPromoted, Use::Sign) => {
            "the new key does not sign yet: `homing key promote` is next; to give the rotation up, \
             remove the line `next` on all hosts"
        }
        (Untimely::NotPromoted, Use::Session) => {
            "sessions are not looked up by the new key yet: `homing key promote --session` is next; \
             to give the rotation up, remove the line `next-session` on all hosts and restart them"
        }
        (Untimely::Idle, _) => "no rotation is under way",
    }
}

/// What to do after a step for one use, or if there is no step.
const fn then(keyring: &Keyring, which: Use) -> Option<&'static str> {
    match (&keyring.other, which) {
        (Some(Other::Next(_)), Use::Sign) => Some(
            "copy it to every host of the POP and reload each agent (`homing reload`); when all have \
             done so: `homing key promote`",
        ),
        (Some(Other::Old(_)), Use::Sign) => Some(
            "copy it to every host of the POP and reload each agent (`homing reload`); when \
             `homing hosts --json` shows no host whose key is the old one: `homing key finish`",
        ),
        (Some(Other::Next(_)), Use::Session) => Some(
            "copy it to every host of the POP and restart each agent, one after the other; when \
             `homing hosts --json` shows every host telling by the next key (`session_keys`): \
             `homing key promote --session`",
        ),
        (Some(Other::Old(_)), Use::Session) => Some(
            "copy it to every host of the POP and restart each agent, one after the other; when \
             `homing hosts --json` shows every host looking up by the new key (first of \
             `session_keys`): `homing key finish --session`",
        ),
        (None, _) => None,
    }
}

fn report(path: PathBuf, step: &KeyStep, file: &KeyFile) -> Report {
    let name = |key: &Key| format!("{:02x}", key_id(key));
    let names = |keyring: &Keyring| match &keyring.other {
        Some(Other::Next(key)) => (Some(name(key)), None),
        Some(Other::Old(key)) => (None, Some(name(key))),
        None => (None, None),
    };
    let (next, old) = names(&file.sign);
    let (next_session, old_session) = names(&file.session);
    let [sign, session] = [Use::Sign, Use::Session].map(|of| then(&file.keyring(of), of));
    let then = match step {
        KeyStep::New => "copy it to every host of the POP, then start the agents",
        KeyStep::Show => sign
            .or(session)
            .unwrap_or("no rotation is under way; `homing key begin` begins one"),
        KeyStep::Begin(of) | KeyStep::Promote(of) | KeyStep::Finish(of) => match of.which() {
            Use::Sign => sign.unwrap_or(
                "copy it to every host of the POP and reload each agent (`homing reload`)",
            ),
            Use::Session => session.unwrap_or(
                "copy it to every host of the POP and restart each agent, one after the other",
            ),
        },
    };
    Report {
        file: path,
        signs: name(&file.sign.key),
        next,
        old,
        session: name(&file.session.key),
        next_session,
        old_session,
        fragments: name(file.fragments()),
        then,
    }
}
