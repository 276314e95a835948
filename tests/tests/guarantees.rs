//! `docs/guarantees.md` names a test for each promise: every one of them exists.

use std::{fs, path::Path};

#[test]
fn every_test_that_a_guarantee_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let mut named = 0;
    for name in page.split('`').skip(1).step_by(2) {
        let Some((file, test)) = name.split_once(".rs: ") else {
            continue;
        };
        named += 1;
        let places = [
            "tests/tests",
            "agent/src",
            "client/src",
            "common/tests",
            "xtask/tests",
        ]
        .map(|place| root.join(place));
        let found = places.iter().any(|place| {
            let text = fs::read_to_string(place.join(format!("{file}.rs")));
            text.is_ok_and(|text| text.contains(&format!("fn {test}(")))
        });
        assert!(found, "no test `{test}` in {file}.rs");
    }
    assert!(
        named > 50,
        "only {named} tests are named: has the page's form changed?"
    );
}
