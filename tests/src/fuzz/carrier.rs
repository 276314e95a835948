//! What both ends of a carrier hear.

use bytes::{Bytes, BytesMut};
use homing_agent::{
    mux::{
        Hint, MUX,
        frame::Garbage,
        incoming::{First, Incoming},
        outgoing::{Message, Outgoing, Pace},
        preamble::{Hello, MODE_TLS, Preamble, VERSION, Verdict},
    },
    pop::Stream,
};
use homing_common::host::HostId;

const PACE: Pace = Pace {
    ping_every: 1,
    lag_after: 2,
    dead_after: 4,
};

/// Preamble, verdict, hello and frames, each read as if it were the first.
pub fn hear(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk() {
        Preamble::decode(bytes);
    }
    if let Some(&bytes) = bytes.first_chunk() {
        Verdict::decode(bytes);
    }
    if let Some(bytes) = bytes.first_chunk() {
        Hello::decode(bytes);
    }
    // Garbage is the right answer to nearly everything.
    let _ = answer(bytes);
    let (mut outgoing, _) = dialer();
    let _ = outgoing.hear(bytes, 0, &mut Vec::new());
}

/// A dialer that has sent three messages and offers one, and what it has said.
fn dialer() -> (Outgoing<()>, BytesMut) {
    let mut outgoing = Outgoing::new(MUX.number, PACE, 0);
    for len in [0, 5, 300, 100_000] {
        let body = Bytes::from(vec![7; len]);
        let (hint, tag) = (Hint::default(), ());
        outgoing.give(Message { body, hint, tag });
    }
    let mut said = BytesMut::new();
    outgoing.take(&mut said, usize::MAX, 0);
    (outgoing, said)
}

/// What an acceptor answers that has room for everything.
fn answer(bytes: &[u8]) -> Result<BytesMut, Garbage> {
    let mut incoming = Incoming::new(MUX.number, MUX.message_max, PACE, 0);
    let mut answers = BytesMut::new();
    for piece in bytes.chunks(100) {
        incoming.hear(piece, 0)?;
        while let Some(first) = incoming.first() {
            match first {
                First::Offer { len, .. } if len % 2 == 0 => incoming.grant(),
                First::Offer { .. } => incoming.decline(),
                First::Message { len, .. } => {
                    incoming.accept(0);
                    incoming.hurry();
                    if len % 2 == 1 {
                        incoming.note(&[3; 3]);
                    }
                }
            }
        }
        incoming.take(&mut answers, 0);
    }
    Ok(answers)
}

/// What a real carrier says.
pub fn seeds() -> Vec<Vec<u8>> {
    let preamble = Preamble {
        version: VERSION,
        mode: MODE_TLS,
        key: 7,
        channel: MUX.number,
        dialer: HostId(1),
        acceptor: HostId(2),
    };
    let hello = Hello {
        verdict: Verdict::Welcome,
        stream: Stream {
            incarnation: 5,
            generation: 1,
        },
    };
    let (_, said) = dialer();
    let answers = answer(&said).unwrap_or_default();
    vec![
        preamble.encode().into(),
        hello.encode().into(),
        said.into(),
        answers.into(),
    ]
}
