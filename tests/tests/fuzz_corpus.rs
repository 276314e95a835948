//! What the fuzzer has found, and began with, played again without it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use homing_agent::{
    datapath::repair::Snapshot,
    gossip::{ask, wire},
    pop::liveness,
};
use homing_tests::{fuzz::TARGETS, random::Random};

fn corpus(target: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("fuzz/corpus").join(target)
}

fn files(target: &str) -> Vec<Vec<u8>> {
    let folder = corpus(target);
    let entries = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    entries
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect()
}

/// Whether bytes are a message of some kind.
type Check = fn(&[u8]) -> bool;

#[test]
fn every_target_stands_its_corpus() {
    for (name, target) in TARGETS {
        let files = files(name);
        assert!(files.len() >= 3, "{name} has {} files only", files.len());
        for bytes in files {
            target(&bytes);
        }
    }
}

#[test]
fn every_target_stands_its_corpus_cut_and_changed() {
    let mut random = Random::new(3);
    for (name, target) in TARGETS {
        // A game costs more than a look at a message.
        let rounds = if name == "node" { 5 } else { 100 };
        for bytes in files(name).iter().filter(|bytes| !bytes.is_empty()) {
            for _ in 0..rounds {
                let mut bytes = bytes.clone();
                for _ in 0..=random.below(3) {
                    let at = random.below(bytes.len() as u64) as usize;
                    bytes[at] = random.next() as u8;
                }
                bytes.truncate(1 + random.below(bytes.len() as u64) as usize);
                target(&bytes);
            }
        }
    }
}

/// A message that has got another shape needs new seeds: `cargo xtask fuzz --seeds`.
#[test]
fn seeds_are_messages_of_the_present_protocol() {
    let checks: [(&str, Check); 5] = [
        ("gossip", |bytes| wire::decode(bytes).is_some()),
        ("bulk", |bytes| wire::bulk::decode(bytes).is_some()),
        ("ask", ask::is_message),
        ("liveness", liveness::is_message),
        ("snapshot", |bytes| Snapshot::decode(bytes).is_ok()),
    ];
    for (name, is_message) in checks {
        let seeds = fs::read_dir(corpus(name)).unwrap().map(Result::unwrap);
        let seeds = seeds.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"seed"));
        for seed in seeds {
            let path = seed.path();
            assert!(
                is_message(&fs::read(&path).unwrap()),
                "{} is none",
                path.display()
            );
        }
    }
}
