//! What `dist/` has for Prometheus and Grafana is of the metrics that the agent exports, and
//! what the manual says of alerts is of those that there are. promtool judges the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::LazyLock,
};

use super::{fake::*, metrics};

static RULES: LazyLock<String> = LazyLock::new(|| read("dist/prometheus/homing.rules.yml"));
static EXAMPLES: LazyLock<String> = LazyLock::new(|| read("dist/prometheus/homing.rules.test.yml"));
static DASHBOARD: LazyLock<String> = LazyLock::new(|| read("dist/grafana/homing.json"));
static MANUAL: LazyLock<String> = LazyLock::new(|| read("docs/operating.md"));

/// Where the manual is once the package is installed; the unit names it, too.
const RUNBOOK: &str = "file:///usr/share/doc/homing/operating.md#";

/// Labels that Prometheus gives, or that operators give targets.
const TARGET_LABELS: [&str; 3] = ["instance", "job", "pop"];

/// Labels whose values are all known, so that one that is misspelt is found.
const CLOSED_LABELS: [&str; 5] = ["outcome", "verdict", "state", "way", "kind"];

fn exported() -> String {
    metrics::to_text(&metrics::openmetrics(metrics::Snapshot {
        status: sample_status(),
        hosts: sample_hosts(),
        stats: sample_stats(),
    }))
}

/// The values of each label, by the name of the sample.
pub(super) type Samples = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// What the agent exports. A family without a sample is there, without labels.
pub(super) fn samples() -> Samples {
    let mut samples = Samples::new();
    for line in exported().lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            if kind != "histogram" {
                samples.entry(name.to_owned()).or_default();
            }
        } else if !line.starts_with('#') {
            let (name, _) = name_at(line).expect("a name");
            let labels = samples.entry(name.to_owned()).or_default();
            for (label, value) in labels_at(&line[name.len()..]).0 {
                labels.entry(label).or_default().insert(value);
            }
        }
    }
    samples
}

/// The name that a text begins with, and what is behind it.
fn name_at(text: &str) -> Option<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let len = text.find(|c| !is_name(c)).unwrap_or(text.len());
    (len > 0).then(|| text.split_at(len))
}

/// Labels in braces with what stands for their values, and what is behind them.
fn labels_at(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut labels = Vec::new();
    let Some(rest) = text.strip_prefix('{') else {
        return (labels, text);
    };
    text = rest;
    while let Some((label, rest)) = name_at(text.trim_start_matches([',', ' '])) {
        let rest = rest.trim_start_matches(['=', '~', '!']);
        let value = rest.strip_prefix('"').expect("a quoted value");
        let (value, rest) = value.split_once('"').expect("its end");
        labels.push((label.to_owned(), value.to_owned()));
        text = rest;
    }
    (labels, text.strip_prefix('}').expect("the end of labels"))
}

/// Every expression: of the rules, and of the dashboard.
fn expressions() -> Vec<String> {
    let mut expressions = Vec::new();
    for alert in alerts() {
        expressions.push(alert.expression);
    }
    let dashboard: serde_json::Value = serde_json::from_str(&DASHBOARD).expect("JSON");
    gather(&dashboard, &mut expressions);
    expressions
}

/// What panels ask for, and what variables are made of.
fn gather(value: &serde_json::Value, expressions: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if name == "expr" || name == "definition" => {
                        expressions.push(text.to_owned());
                    }
                    _ => gather(value, expressions),
                }
            }
        }
        serde_json::Value::Array(values) => {
            values.iter().for_each(|value| gather(value, expressions));
        }
        _ => {}
    }
}

/// An alert of the rules.
pub(super) struct Alert {
    pub(super) name: String,
    expression: String,
    /// Its lines.
    text: String,
}

pub(super) fn alerts() -> Vec<Alert> {
    let alerts = RULES.split("\n      - alert: ").skip(1).map(|text| {
        let (name, rest) = text.split_once("\n        expr: ").expect("an expression");
        let ends = ["\n        for: ", "\n        labels:"];
        let end = ends.iter().filter_map(|end| rest.find(end)).min();
        Alert {
            name: name.to_owned(),
            expression: rest[..end.expect("its end")].to_owned(),
            text: text.to_owned(),
        }
    });
    alerts.collect()
}

/// Checks that an expression is about what is exported.
fn check(expression: &str, samples: &Samples) {
    let mut rest = expression;
    while let Some(at) = rest.find("homing_") {
        let before = rest[..at].chars().next_back();
        let (name, behind) = name_at(&rest[at..]).expect("a name");
        rest = behind;
        // A part of another word, such as a variable.
        if before.is_some_and(|c| c.is_ascii_alphanumeric() || "_$".contains(c)) {
            continue;
        }
        let known = samples.get(name);
        let known = known.unwrap_or_else(|| panic!("no agent exports {name}: {expression}"));
        for (label, values) in labels_at(behind).0 {
            if TARGET_LABELS.contains(&label.as_str()) {
                continue;
            }
            let exported = known.get(&label);
            let exported =
                exported.unwrap_or_else(|| panic!("{name} has no label {label}: {expression}"));
            let closed = CLOSED_LABELS.contains(&label.as_str()) && !values.contains(['$', '.']);
            for value in values.split('|').filter(|_| closed) {
                let exists = exported.contains(value);
                assert!(exists, "{name} has no {label} {value}: {expression}");
            }
        }
    }
}

/// promtool: unpacked by `cargo xtask setup`, or the machine's own.
fn promtool(args: &[&str]) -> Option<Command> {
    let unpacked = root().join("target/tools/bin/promtool");
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).map(|folder| folder.join("promtool"));
    let found = Some(unpacked).filter(|path| path.is_file());
    let Some(program) = found.or_else(|| places.find(|path| path.is_file())) else {
        eprintln!("skipped: there is no promtool; get one with: cargo xtask setup");
        return None;
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(root().join("dist/prometheus"));
    Some(command)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect(path)
}

fn root() -> PathBuf {
    let agent = Path::new(env!("CARGO_MANIFEST_DIR"));
    agent.parent().expect("the workspace").to_owned()
}

/// Runs promtool, which must find nothing.
fn must_pass(mut command: Command, input: &str) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(input.as_bytes()).expect("its input");
    drop(stdin);
    let output = child.wait_with_output().expect("promtool");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    if let Some(command) = promtool(&["check", "metrics"]) {
        must_pass(command, &exported());
    }
}

#[test]
fn promtool_finds_nothing_wrong_with_the_rules() {
    if let Some(command) = promtool(&["check", "rules", "homing.rules.yml"]) {
        must_pass(command, "");
    }
}

#[test]
fn alerts_fire_and_are_silent_on_example_series() {
    if let Some(command) = promtool(&["test", "rules", "homing.rules.test.yml"]) {
        must_pass(command, "");
    }
    for Alert { name, .. } in alerts() {
        let cases = EXAMPLES.split("\n  - name: ").skip(1);
        let cases = cases.filter(|case| case.contains(&format!("alertname: {name}\n")));
        let silent = |case: &&str| case.contains("exp_alerts: []");
        let (silent, fires): (Vec<_>, Vec<_>) = cases.partition(silent);
        assert!(!fires.is_empty(), "no series fires {name}");
        assert!(!silent.is_empty(), "no series leaves {name} silent");
    }
}

#[test]
fn rules_and_dashboard_are_of_metrics_that_the_agent_exports() {
    let samples = samples();
    let expressions = expressions();
    assert!(expressions.len() > 60, "{}", expressions.len());
    for expression in expressions {
        assert!(
            expression.contains("homing_") || expression.contains("up{"),
            "about nothing of this: {expression}"
        );
        check(&expression, &samples);
    }
}

#[test]
fn alerts_say_what_they_mean_and_the_manual_what_to_do() {
    let (_, manual) = MANUAL.split_once("\n## Alerts\n").expect("a section");
    let manual = manual.split("\n## ").next().expect("its end");
    let mut paragraphs = BTreeMap::new();
    for paragraph in manual.split("\n### ").skip(1) {
        let (name, text) = paragraph.split_once('\n').expect("a text");
        paragraphs.insert(name, text);
    }
    for Alert { name, text, .. } in alerts() {
        let severities = ["warning", "critical"];
        let severity = severities
            .iter()
            .find(|severity| text.contains(&format!("\n          severity: {severity}\n")));
        let severity = severity.unwrap_or_else(|| panic!("{name} has no severity"));
        for part in ["summary", "description"] {
            let there = text.contains(&format!("\n          {part}: "));
            assert!(there, "{name} has no {part}");
        }
        let runbook = format!("runbook_url: {RUNBOOK}{}", name.to_lowercase());
        assert!(text.contains(&runbook), "{name} does not say {runbook}");
        let paragraph = paragraphs.remove(name.as_str());
        let paragraph = paragraph.unwrap_or_else(|| panic!("the manual has nothing on {name}"));
        let said = paragraph.to_lowercase().contains(&format!("*{severity}.*"));
        assert!(said, "the manual has another severity of {name}");
        let remedy = paragraph.contains("**What to do:**");
        assert!(remedy, "the manual does not say what to do about {name}");
    }
    let others: Vec<_> = paragraphs.keys().collect();
    assert!(others.is_empty(), "there are no such alerts: {others:?}");
}

#[test]
fn units_stand_last_and_help_stands_by_itself() {
    for line in exported().lines() {
        let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' '))
        else {
            continue;
        };
        let name = name.strip_suffix("_total").unwrap_or(name);
        for unit in ["bytes", "seconds"] {
            let within = name.contains(&format!("_{unit}_"));
            assert!(!within, "{name}: {unit} must stand last");
        }
        for unit in ["_us", "_ms", "_ns", "_kib", "_mib"] {
            assert!(!name.ends_with(unit), "{name} is in no base unit");
        }
        let words = help.split_whitespace().count();
        assert!(words >= 2, "{name} has no help: {help:?}");
        assert!(
            !help.ends_with('.'),
            "{name}: {help:?} is no line of a table"
        );
        for pointer in ["Among these", "Bytes of them", "The same", "Dropped:"] {
            assert!(!help.starts_with(pointer), "{name}: of what? {help:?}");
        }
    }
}
