//! What is wrong with a configuration file, in words an operator can act on.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1; zero when the file as a whole is meant.
    pub line: usize,
    /// The key, with its sections: `pop.seeds[2].address`.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub fix: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        write!(f, "{}; fix: {}", self.what, self.fix)
    }
}

/// Everything that is wrong with a file.
///
/// It prints one line per problem: `file:line: key: what is wrong; fix: …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    /// The file.
    pub path: PathBuf,
    /// At least one problem, in the order of the lines.
    pub list: Vec<Problem>,
}

impl Problems {
    pub(super) fn unreadable(path: &Path, error: &io::Error) -> Self {
        let fix = match error.kind() {
            io::ErrorKind::NotFound => {
                "write it (start from dist/homing.toml), or name another with --config"
            }
            io::ErrorKind::InvalidData => "save it as UTF-8 text",
            io::ErrorKind::PermissionDenied => "run as root, or make it readable",
            _ => "name another with --config",
        };
        Self {
            path: path.to_owned(),
            list: vec![Problem {
                line: 0,
                key: String::new(),
                what: format!("cannot read the configuration: {error}"),
                fix: fix.to_owned(),
            }],
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:", self.path.display())?;
            if problem.line > 0 {
                write!(f, "{}:", problem.line)?;
            }
            write!(f, " {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The known name that an unknown one was probably meant to be.
pub(super) fn nearest<'a>(
    unknown: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let unknown = unknown.to_ascii_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&unknown, name), name))
        // A third of the letters wrong is still a typo; more is another word.
        .filter(|(distance, name)| *distance <= 1.max(name.len().max(unknown.len()) / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
