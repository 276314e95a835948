//! `docs/counters.md` is of what the agent exports: each metric and each outcome stands there
//! once, and there is no other.

use std::collections::BTreeSet;

use homing_common::outcome::{Outcome, Verdict};

use super::monitoring;

const PAGE: &str = include_str!("../../../docs/counters.md");

/// Metrics that a table has: by name, with their labels.
fn metrics() -> Vec<(String, BTreeSet<String>)> {
    let metrics = rows("| `homing_").map(|row| {
        let (name, labels) = row[0].split_once('{').unwrap_or((&row[0], ""));
        let labels = labels.trim_end_matches('}').split(',');
        let labels = labels.filter(|label| !label.is_empty());
        (name.to_owned(), labels.map(str::to_owned).collect())
    });
    metrics.collect()
}

/// The cells of rows that begin so, without the marks of code in the first.
fn rows(begin: &str) -> impl Iterator<Item = Vec<String>> {
    let rows = PAGE.lines().filter(move |line| line.starts_with(begin));
    rows.map(|row| {
        // A bar within a cell has a stroke before it.
        let row = row.replace("\\|", "\u{1}");
        let cells = row.trim_matches('|').split('|');
        let cells = cells.map(|cell| cell.trim().replace('\u{1}', "|"));
        let mut cells: Vec<_> = cells.collect();
        cells[0] = cells[0].trim_matches('`').to_owned();
        cells
    })
}

#[test]
fn every_metric_has_a_row_and_every_row_a_metric() {
    let mut samples = monitoring::samples();
    // A histogram's samples have names of their own.
    let histogram = "homing_gossip_open_to_applied_seconds";
    for part in ["bucket", "sum", "count"] {
        let sample = samples.remove(&format!("{histogram}_{part}"));
        assert!(sample.is_some(), "{part}");
    }
    samples.insert(histogram.to_owned(), Default::default());
    let mut seen = BTreeSet::new();
    for (name, labels) in metrics() {
        assert!(
            seen.insert(name.clone()),
            "docs/counters.md has {name} twice"
        );
        let exported = samples.get(&name);
        let exported = exported.unwrap_or_else(|| panic!("no agent exports {name}"));
        let exported: BTreeSet<_> = exported.keys().cloned().collect();
        assert_eq!(labels, exported, "labels of {name}");
    }
    let missing: Vec<_> = samples
        .keys()
        .filter(|name| !seen.contains(*name))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/counters.md has no row for {missing:?}"
    );
}

#[test]
fn every_outcome_has_a_row_and_every_row_an_outcome() {
    let (_, outcomes) = PAGE.split_once("| Outcome |").expect("their table");
    let outcomes = outcomes.split("\n\n").next().expect("its end");
    let listed: Vec<_> = rows("| `")
        .filter(|row| outcomes.contains(&format!("\n| `{}` |", row[0])))
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect();
    let unique: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(unique.len(), listed.len(), "one stands there twice");
    let counted = Outcome::ALL.iter().map(|outcome| {
        let verdict = match outcome.verdict() {
            Verdict::Pass => "pass",
            Verdict::Forward => "forward",
            Verdict::Drop => "drop",
        };
        (outcome.label().to_owned(), verdict.to_owned())
    });
    assert_eq!(unique, counted.collect());
}

#[test]
fn every_row_says_what_moves_it_and_what_that_means() {
    let alerts: BTreeSet<_> = monitoring::alerts()
        .into_iter()
        .map(|alert| alert.name)
        .collect();
    let mut count = 0;
    for row in rows("| `") {
        count += 1;
        let [name, .., moved_by, meaning] = &row[..] else {
            panic!("too few cells: {row:?}");
        };
        let words = moved_by.split_whitespace().count();
        assert!(words >= 2, "{name}: what moves it? {moved_by:?}");
        assert!(
            meaning.ends_with(['.', ':']),
            "{name}: {meaning:?} is no sentence"
        );
        for named in meaning.split('`').filter(|word| word.starts_with("Homing")) {
            assert!(alerts.contains(named), "{name}: there is no alert {named}");
        }
    }
    assert!(count > 350, "{count} rows");
}
