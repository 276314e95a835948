//! Where the agent's log goes: the journal when systemd runs it and it can be reached,
//! else the standard error, one line per event. And what goes there.

use std::{
    io,
    io::IsTerminal,
    os::fd::AsFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Error, Result};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::LevelFilter, layer::SubscriberExt, registry::LookupSpan,
    reload, util::SubscriberInitExt,
};

use super::journal::{self, Journal};
use crate::admin::{Logs, api};

/// What is logged.
struct Level {
    filter: reload::Handle<EnvFilter, Registry>,
    at_start: String,
    now: Mutex<String>,
}

impl Level {
    fn new(filter: reload::Handle<EnvFilter, Registry>, at_start: &str) -> Self {
        Self {
            filter,
            at_start: at_start.to_owned(),
            now: Mutex::new(at_start.to_owned()),
        }
    }
}

impl Logs for Level {
    fn level(&self) -> api::Log {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        api::Log {
            level: now.clone(),
            at_start: self.at_start.clone(),
        }
    }

    fn set_level(&self, level: &str) -> Result<(), String> {
        let filter = filter(level)?;
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let tell = || tracing::info!(from = %now, to = level, "what is logged is changed");
        let loudness = |filter: &EnvFilter| filter.max_level_hint().unwrap_or(LevelFilter::TRACE);
        let before = self.filter.with_current(loudness);
        // By the more talkative of both: the other may leave this very line out.
        let is_quieter = before.is_ok_and(|before| loudness(&filter) < before);
        if is_quieter {
            tell();
        }
        let set = self.filter.reload(filter);
        set.map_err(|error| error.to_string())?;
        if !is_quieter {
            tell();
        }
        level.clone_into(&mut now);
        Ok(())
    }
}

/// Reads what is to be logged.
///
/// # Errors
///
/// It makes no sense: why.
pub(super) fn filter(directives: &str) -> Result<EnvFilter, String> {
    // Any word names a module, as far as the filter is concerned.
    let is_word = |part: &&str| !part.contains(['=', '[', ':', '_']);
    let is_level = |part: &str| part.parse::<LevelFilter>().is_ok();
    let mut words = directives.split(',').map(str::trim).filter(is_word);
    if let Some(word) = words.find(|word| word.is_empty() || !is_level(word)) {
        return Err(format!(
            "{word:?} is no level: write off, error, warn, info, debug or trace, or MODULE=LEVEL"
        ));
    }
    EnvFilter::try_new(directives).map_err(|error| error.to_string())
}

/// Sets the log up; `directives` are those of [`filter`].
pub(super) fn init(directives: &str) -> Result<Arc<dyn Logs>> {
    let filter = filter(directives).map_err(Error::msg);
    let filter = filter.context("cannot read the log level")?;
    let (filter, handle) = reload::Layer::new(filter);
    let journal = is_journal().then(|| Journal::open(Path::new(journal::SOCKET)));
    let (sink, unreached) = match journal {
        Some(Ok(journal)) => (journal.boxed(), None),
        Some(Err(error)) => (lines(), Some(error)),
        None => (lines(), None),
    };
    tracing_subscriber::registry()
        .with(sink.with_filter(filter))
        .try_init()
        .context("cannot set the log up")?;
    if let Some(error) = unreached {
        tracing::warn!(
            %error, socket = journal::SOCKET,
            fix = "nothing, if lines without fields will do: they go to the standard error, which is the journal's too; else see `systemctl status systemd-journald.socket`, and restart the agent",
            "cannot reach the journal's socket"
        );
    }
    Ok(Arc::new(Level::new(handle, directives)))
}

/// Lines on the standard error.
fn lines<S>() -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    lines.boxed()
}

/// Whether the standard error is the journal (systemd.exec(5), `JOURNAL_STREAM`):
/// the variable alone says nothing, it is inherited by whoever redirects.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = nix::sys::stat::fstat(io::stderr().as_fd()) else {
        return false;
    };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_read_and_words_that_are_neither_are_not() {
        for good in [
            "info",
            "WARN",
            "off",
            "info,homing_agent::gossip=debug",
            "homing_agent=trace,warn",
            "info,homing_agent[{host=3}]=debug",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("inof", "\"inof\" is no level"),
            ("info, verbose", "\"verbose\" is no level"),
            ("", "\"\" is no level"),
            ("homing_agent=loud", "expected one of"),
        ] {
            let error = filter(bad).expect_err(bad);
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn another_level_is_in_force_at_once_and_a_wrong_one_changes_nothing() {
        let lines = Lines::default();
        let (filter, handle) = reload::Layer::new(filter("info").expect("a level"));
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        let log = tracing_subscriber::registry().with(layer.with_filter(filter));
        let level = Level::new(handle, "info");
        tracing::subscriber::with_default(log, || {
            tracing::debug!("one");
            level.set_level("debug").expect("a level");
            tracing::debug!("two");
            level.set_level("loud").expect_err("no level");
            tracing::debug!("three");
            let told = level.level();
            assert_eq!((&*told.level, &*told.at_start), ("debug", "info"));
            level.set_level("error").expect("a level");
            tracing::debug!("four");
            level.set_level("info").expect("a level");
        });
        let lines = lines.0.lock().expect("lines").clone();
        let text = String::from_utf8(lines).expect("text");
        let seen = |word| text.contains(word);
        assert_eq!(
            ["one", "two", "three", "four"].map(seen),
            [false, true, true, false]
        );
        let changes = ["info to=\"debug", "debug to=\"error", "error to=\"info"];
        for change in changes {
            assert!(text.contains(&format!("from={change}")), "{change}: {text}");
        }
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lines").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
