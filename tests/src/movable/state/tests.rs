use super::*;
use crate::random::Random;

/// What a connection answers to `said`, if it comes in parts, and the state goes through
/// a blob between any two steps.
fn converse(said: &[u8], random: &mut Random, parts: bool) -> (Vec<u8>, Standing) {
    let (mut state, mut answer, mut rest) = (State::default(), Vec::new(), said);
    for _ in 0..100_000 {
        match state.standing() {
            Standing::On => {}
            Standing::HalfOver => state.half_closed(),
            end => return (answer, end),
        }
        let some = |most: usize, random: &mut Random| match parts {
            true => most.min(1 + random.below(700) as usize),
            false => most,
        };
        let len = some(rest.len(), random);
        if state.reads() && (len > 0 || rest.is_empty()) {
            let (now, later) = rest.split_at(len);
            rest = later;
            state.take(now);
        }
        if state.output().is_empty() && state.rate().is_some() {
            state.make(some(1 << 20, random) as u64);
        }
        let len = some(state.output().len(), random);
        answer.extend(&state.output()[..len]);
        state.written(len);
        if parts {
            let blob = state.to_blob(random.below(3000) as usize);
            let back = State::from_blob(&blob).expect("its own");
            assert_eq!(back, state);
            state = back;
        }
    }
    panic!("it does not end: {state:?}");
}

fn bulk(seed: u64, len: &str, up: usize) -> Vec<u8> {
    let mut said = format!("bulk {seed} {len} 0\n").into_bytes();
    let start = said.len();
    said.resize(start + up, 0);
    stream(seed, 0, &mut said[start..]);
    said
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream(seed, 0, &mut bytes);
    bytes
}

#[test]
fn every_kind_of_connection_goes_on_from_its_state() {
    let mut random = Random::new(5);
    let trailer = |count: u64, verdict: u64| [count.to_be_bytes(), verdict.to_be_bytes()].concat();
    let http = b"GET /70000?seed=3 HTTP/1.1\r\nHost: a\r\n\r\nGET /5 HTTP/1.1\r\nConnection: close\r\n\r\n";
    let head = |len, connection| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {len}\r\nConnection: {connection}\r\n\r\n"
        )
        .into_bytes()
    };
    let cases: [(Vec<u8>, Vec<u8>); 6] = [
        (b"one\ntwo\nrest".to_vec(), b"1: one\n2: two\n".to_vec()),
        (b"echo\nall\nof it".to_vec(), b"all\nof it".to_vec()),
        (
            bulk(4, "90000", 50_000),
            [bytes(down(4), 90_000), trailer(50_000, RIGHT)].concat(),
        ),
        // Its end comes first, whatever comes up.
        (bulk(4, "0", 50_000), Vec::new()),
        (
            http.to_vec(),
            [head(70_000, "keep-alive"), bytes(3, 70_000), head(5, "close"), bytes(0, 5)].concat(),
        ),
        (
            b"GET /nothing HTTP/1.1\r\n\r\n".to_vec(),
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/octet-stream\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
        ),
    ];
    for (number, (said, wanted)) in cases.iter().enumerate() {
        for round in 0..30 {
            let (answer, end) = converse(said, &mut random, round > 0);
            // A client that has ended its half before the server could end its own gets
            // the trailer.
            let wanted = match number {
                3 if !answer.is_empty() => &trailer(50_000, RIGHT),
                _ => wanted,
            };
            assert!(answer == *wanted, "case {number}, round {round}");
            assert_eq!(end, Standing::Over, "case {number}, round {round}");
        }
    }
}

#[test]
fn wrong_bytes_are_seen_and_said() {
    let mut random = Random::new(6);
    let mut said = bulk(4, "90000", 50_000);
    said[30_000] ^= 1;
    for _ in 0..30 {
        let (answer, _) = converse(&said, &mut random, true);
        assert_eq!(answer[answer.len() - 8..], WRONG.to_be_bytes());
    }
    // Where nothing more can be said, it is reset.
    let mut said = bulk(4, "10", 50_000);
    said[30_000] ^= 1;
    let mut state = State::default();
    state.take(&said[..20_000]);
    state.make(10);
    state.written(10);
    assert_eq!(state.standing(), Standing::HalfOver);
    state.half_closed();
    state.take(&said[20_000..]);
    assert_eq!(state.standing(), Standing::Reset);
}

#[test]
fn a_state_that_is_spoiled_is_another() {
    let mut state = State::default();
    state.take(&bulk(4, "90000", 50_000));
    let mut other = State::from_blob(&state.to_blob(0)).unwrap();
    other.spoil();
    assert_ne!(other, state);
}

#[test]
fn a_blob_has_the_size_that_it_should_and_nothing_else_is_one() {
    let state = State::default();
    assert!(state.to_blob(0).len() < 200);
    for size in [1_000, 16_384, 1 << 20] {
        let blob = state.to_blob(size);
        assert!(
            (size..size + 16).contains(&blob.len()),
            "{} for {size}",
            blob.len()
        );
        let mut other = blob.to_vec();
        other[size - 1] ^= 1;
        assert!(State::from_blob(&other.into()).is_none());
    }
    assert!(State::from_blob(&b"nonsense".to_vec().into()).is_none());
}

#[test]
fn a_line_without_an_end_is_the_end() {
    let mut state = State::default();
    while state.reads() {
        state.take(&[b'a'; 1000]);
    }
    assert_eq!(state.standing(), Standing::Over);
}
