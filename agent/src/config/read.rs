//! Walks a TOML document, notes what is wrong and goes on.
//!
//! A [`Section`] remembers which keys were asked for. What is left when it is
//! closed is unknown, and the asked ones are what it may have been meant to be, so
//! the list of keys stands in one place only: where they are read.

use std::cell::{Cell, RefCell};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::problem::{Problem, nearest};

/// A TOML value with its place in the file.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// Why a value will not do: what is wrong, and the fix.
pub(super) struct Bad {
    pub what: String,
    pub fix: String,
}

impl Bad {
    pub(super) fn new(what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            fix: fix.into(),
        }
    }
}

/// Collects problems.
pub(super) struct Notes<'a> {
    text: &'a str,
    list: RefCell<Vec<Problem>>,
}

impl<'a> Notes<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            list: RefCell::default(),
        }
    }

    pub(super) fn add(&self, line: usize, key: impl Into<String>, bad: Bad) {
        self.list.borrow_mut().push(Problem {
            line,
            key: key.into(),
            what: bad.what,
            fix: bad.fix,
        });
    }

    /// The line of a byte of the file.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    /// The file's last line with anything on it: where what is missing is missed.
    pub(super) fn last_line(&self) -> usize {
        self.line_at(self.text.trim_end().len())
    }

    /// The problems so far, in the order of the lines.
    pub(super) fn finish(self) -> Vec<Problem> {
        let mut list = self.list.into_inner();
        list.sort_by_key(|problem| problem.line);
        list
    }
}

/// A good value with its place, for checks that compare several.
#[derive(Clone)]
pub(super) struct At<T> {
    pub value: T,
    pub line: usize,
    pub key: String,
}

impl<T> At<T> {
    /// Notes a problem with this value.
    pub(super) fn wrong(&self, notes: &Notes<'_>, bad: Bad) {
        notes.add(self.line, self.key.clone(), bad);
    }
}

/// A table of the document.
pub(super) struct Section<'a> {
    notes: &'a Notes<'a>,
    table: Option<&'a DeTable<'a>>,
    /// With a dot at its end, or empty.
    prefix: String,
    line: usize,
    asked: RefCell<Vec<&'static str>>,
    /// Nothing is missing in a section whose place holds no table.
    mute: Cell<bool>,
}

impl<'a> Section<'a> {
    /// The document itself.
    pub(super) fn root(notes: &'a Notes<'a>, table: &'a DeTable<'a>) -> Self {
        Self::new(notes, Some(table), String::new(), notes.last_line())
    }

    fn new(
        notes: &'a Notes<'a>,
        table: Option<&'a DeTable<'a>>,
        prefix: String,
        line: usize,
    ) -> Self {
        Self {
            notes,
            table,
            prefix,
            line,
            asked: RefCell::default(),
            mute: Cell::new(false),
        }
    }

    fn take(&self, key: &'static str) -> Option<(usize, &'a Value<'a>)> {
        self.asked.borrow_mut().push(key);
        let (name, value) = self.table?.get_key_value(key)?;
        Some((self.notes.line_at(name.span().start), value))
    }

    fn missing(&self, key: &'static str, fix: &str) {
        if !self.mute.get() {
            let what = "is missing";
            self.notes
                .add(self.line, self.path(key), Bad::new(what, fix));
        }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn read<T>(
        &self,
        line: usize,
        key: String,
        value: &Value<'_>,
        as_type: impl FnOnce(&DeValue<'_>) -> Result<T, Bad>,
    ) -> Option<At<T>> {
        match as_type(value.get_ref()) {
            Ok(value) => Some(At { value, line, key }),
            Err(bad) => {
                self.notes.add(line, key, bad);
                None
            }
        }
    }

    /// A key that must be there; `fix` says what to write if it is not.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        fix: &str,
        as_type: impl FnOnce(&DeValue<'_>) -> Result<T, Bad>,
    ) -> Option<At<T>> {
        match self.take(key) {
            Some((line, value)) => self.read(line, self.path(key), value, as_type),
            None => {
                self.missing(key, fix);
                None
            }
        }
    }

    /// A key that may be there. The outer `None` says that it is there and wrong.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        as_type: impl FnOnce(&DeValue<'_>) -> Result<T, Bad>,
    ) -> Option<Option<At<T>>> {
        match self.take(key) {
            Some((line, value)) => self.read(line, self.path(key), value, as_type).map(Some),
            None => Some(None),
        }
    }

    /// A key with a default.
    pub(super) fn default<T>(
        &self,
        key: &'static str,
        default: T,
        as_type: impl FnOnce(&DeValue<'_>) -> Result<T, Bad>,
    ) -> Option<T> {
        let found = self.optional(key, as_type)?;
        Some(found.map_or(default, |at| at.value))
    }

    /// A key with a default, and its place: that of the section where it is not there.
    pub(super) fn default_at<T>(
        &self,
        key: &'static str,
        default: T,
        as_type: impl FnOnce(&DeValue<'_>) -> Result<T, Bad>,
    ) -> Option<At<T>> {
        let found = self.optional(key, as_type)?;
        Some(found.unwrap_or_else(|| At {
            value: default,
            line: self.line,
            key: self.path(key),
        }))
    }

    /// A list of at least one value, each judged alone.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        fix: &str,
        as_type: impl Fn(&DeValue<'_>) -> Result<T, Bad>,
    ) -> Option<Vec<At<T>>> {
        let Some((line, value)) = self.take(key) else {
            self.missing(key, fix);
            return None;
        };
        let Some(items) = value.get_ref().as_array() else {
            let bad = not_a("a list", value.get_ref(), fix);
            self.notes.add(line, self.path(key), bad);
            return None;
        };
        if items.is_empty() {
            self.notes
                .add(line, self.path(key), Bad::new("is empty", fix));
            return None;
        }
        let items = items.iter().enumerate().map(|(i, item)| {
            let line = self.notes.line_at(item.span().start);
            self.read(line, format!("{}[{i}]", self.path(key)), item, &as_type)
        });
        // Judge all of them before giving up on the list.
        let items: Vec<_> = items.collect();
        items.into_iter().collect()
    }

    /// A table. One that is missing gives a section in which every required key
    /// is missing, unless `fix` says that the section as a whole is.
    pub(super) fn section(&self, key: &'static str, fix: Option<&str>) -> Section<'a> {
        let prefix = self.path(key) + ".";
        match self.take(key) {
            Some((line, value)) => match value.get_ref() {
                DeValue::Table(table) => Section::new(self.notes, Some(table), prefix, line),
                other => {
                    let bad = not_a("a section", other, &format!("write [{key}]"));
                    self.notes.add(line, self.path(key), bad);
                    self.absent(prefix)
                }
            },
            None => {
                if let Some(fix) = fix {
                    self.missing(key, fix);
                }
                self.absent(prefix)
            }
        }
    }

    fn absent(&self, prefix: String) -> Section<'a> {
        let section = Section::new(self.notes, None, prefix, self.line);
        section.mute.set(true);
        section
    }

    /// Tables that may be there more than once.
    pub(super) fn sections(&self, key: &'static str) -> Option<Vec<Section<'a>>> {
        let Some((line, value)) = self.take(key) else {
            return Some(Vec::new());
        };
        let path = self.path(key);
        let wrong = |line, key: String, wanted, value: &DeValue<'_>| {
            let fix = format!("write one [[{path}]] for each");
            self.notes.add(line, key, not_a(wanted, value, &fix));
        };
        let Some(items) = value.get_ref().as_array() else {
            // `[services]` instead of `[[services]]` is a table here.
            wrong(line, path.clone(), "a list of sections", value.get_ref());
            return None;
        };
        let items = items.iter().enumerate().map(|(i, item)| {
            let line = self.notes.line_at(item.span().start);
            let name = format!("{path}[{i}]");
            match item.get_ref() {
                DeValue::Table(table) => {
                    Some(Section::new(self.notes, Some(table), name + ".", line))
                }
                other => {
                    wrong(line, name, "a section", other);
                    None
                }
            }
        });
        let items: Vec<_> = items.collect();
        items.into_iter().collect()
    }

    /// Where the section begins.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Notes the keys that nobody asked for.
    pub(super) fn close(self) {
        let asked = self.asked.into_inner();
        for (name, _) in self.table.into_iter().flatten() {
            let key = name.get_ref().as_ref();
            if asked.contains(&key) {
                continue;
            }
            let fix = match nearest(key, asked.iter().copied()) {
                Some(near) => format!("write {near}"),
                None => format!("remove it; known here: {}", asked.join(", ")),
            };
            let line = self.notes.line_at(name.span().start);
            let path = format!("{}{key}", self.prefix);
            self.notes.add(line, path, Bad::new("unknown key", fix));
        }
    }
}

/// The problem of a value of the wrong type.
pub(super) fn not_a(wanted: &str, found: &DeValue<'_>, fix: &str) -> Bad {
    let found = match found {
        DeValue::String(text) => format!("the text \"{text}\""),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    };
    Bad::new(format!("must be {wanted}, not {found}"), fix)
}
