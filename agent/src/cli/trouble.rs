//! Every line of the log that reports trouble says what to do: in the sources, each call
//! of `warn!` and `error!` has a field `fix`, which is the last one, so that a line ends in
//! it.

use std::{fs, path::Path};

/// The calls of these macros in a text, each with all that is between its parentheses.
fn calls(text: &str) -> Vec<&str> {
    let mut calls = Vec::new();
    for name in ["warn!(", "error!("] {
        for (at, _) in text.match_indices(name) {
            let within = &text[at + name.len()..];
            // `compile_error!` and the like are others.
            let before = text[..at].chars().next_back();
            if before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                continue;
            }
            calls.push(&within[..end(within).expect("the call ends")]);
        }
    }
    calls
}

/// Where the parenthesis closes that is open where the text begins. Those in quotes do not
/// count.
fn end(text: &str) -> Option<usize> {
    let mut open = 1;
    let mut quoted = false;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                escaped = false;
                continue;
            }
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            '(' if !quoted => open += 1,
            ')' if !quoted => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

/// What is wrong with a call.
fn flaw(call: &str) -> Option<&'static str> {
    let Some((_, rest)) = call.split_once("fix = ") else {
        return Some("it does not say what to do: give it a field `fix`");
    };
    let text = rest.strip_prefix('"').and_then(|rest| rest.split_once('"'));
    match text {
        // It is made elsewhere, for what was seen.
        None => None,
        Some((fix, _)) if fix.split_whitespace().count() < 2 => Some("its `fix` says too little"),
        Some((fix, _)) if fix.ends_with('.') || fix.contains('\n') => {
            Some("its `fix` is no part of a line")
        }
        Some((_, rest)) if !rest.trim_start().starts_with(',') => {
            Some("its `fix` is no text of one piece")
        }
        Some((_, rest)) if rest.trim_start_matches([',', ' ', '\n']).starts_with('"') => None,
        Some(_) => Some("`fix` is not the last field, with the message behind it"),
    }
}

/// Judges every source below a folder.
fn judge(folder: &Path, seen: &mut usize, flaws: &mut Vec<String>) {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .expect("a folder of sources")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            judge(&path, seen, flaws);
        } else if path.extension().is_some_and(|end| end == "rs")
            && path.file_name().is_some_and(|name| name != "trouble.rs")
        {
            let text = fs::read_to_string(&path).expect("a source");
            for call in calls(&text) {
                *seen += 1;
                if let Some(flaw) = flaw(call) {
                    flaws.push(format!("{}: {flaw}: ({call})", path.display()));
                }
            }
            if text.contains("tracing::event!(") {
                flaws.push(format!("{}: write warn! or error!", path.display()));
            }
        }
    }
}

#[test]
fn every_line_that_reports_trouble_says_what_to_do() {
    let agent = Path::new(env!("CARGO_MANIFEST_DIR"));
    let client = agent.parent().expect("the workspace").join("client/src");
    let (mut seen, mut flaws) = (0, Vec::new());
    for folder in [agent.join("src"), client] {
        judge(&folder, &mut seen, &mut flaws);
    }
    assert!(seen > 50, "{seen} calls were found");
    assert!(flaws.is_empty(), "\n{}", flaws.join("\n"));
}

#[test]
fn what_is_wrong_with_a_call_is_seen() {
    let of = |call: &str| {
        let text = format!("tracing::warn!({call}); more()");
        let calls = calls(&text);
        assert_eq!(calls, [call]);
        flaw(calls[0]).is_none()
    };
    assert!(of(r#"%host, fix = "do this, and (that)", "it broke""#));
    assert!(of(
        "%host,\n  fix = \"do this\",\n  \"it broke: {}\", why()"
    ));
    assert!(of(r#"%closing, fix = remedy(closing), "it broke""#));
    assert!(!of(r#"%host, "it broke""#));
    assert!(!of(r#"%host, fix = "no", "it broke""#));
    assert!(!of(r#"%host, fix = "do this.", "it broke""#));
    assert!(!of(r#"fix = "do this", %host, "it broke""#));
    assert!(calls("compile_error!(\"no\")").is_empty());
}
