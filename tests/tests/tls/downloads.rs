//! Bytes in the middle of which a connection moves: `curl`.

use std::{
    fs,
    io::Read as _,
    process::{ChildStdout, Command},
};

use homing_tests::sandbox::eventually;

use super::{
    pop::{NAME, Pop, Wire, service},
    program::Program,
};

const VERSIONS: [&str; 2] = ["1.2", "1.3"];

/// Its output is for the test: no more is downloaded than that reads, and buffers hold.
fn curl(pop: &Pop, version: &str, path: &str, arguments: &[&str]) -> (Program, ChildStdout) {
    let service = service();
    let resolve = format!("{NAME}:443:{}", service.ip());
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--fail", "--http1.1"])
        .args(["--cacert", &pop.file("authority.pem")])
        .args(["--resolve", &resolve])
        .args(["--tlsv1.2", "--tls-max", version])
        .args(arguments)
        .arg(format!("https://{NAME}{path}"));
    Program::start_unread(&mut command, |command| pop.spawn(command))
}

/// What the server sends.
pub fn expected(len: u64) -> Vec<u8> {
    let byte_at = |offset: u64| (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (0..len).map(byte_at).collect()
}

fn one_connection(pop: &Pop) {
    let wire = pop.wire();
    let ports = wire.ports.clone();
    assert_eq!(ports.len(), 1, "{wire:?}");
    let (resets, hellos) = (0, 1);
    assert_eq!(
        wire,
        Wire {
            ports,
            resets,
            hellos
        }
    );
}

/// Downloads in parts, and moves after each but the last: the length of the longest state.
async fn download(pop: &mut Pop, version: &str, path: &str, len: u64) -> usize {
    const PARTS: usize = 9;
    let (client, mut output) = curl(pop, version, path, &["--no-buffer"]);
    let mut got = Vec::new();
    let mut longest = 0;
    for _ in 1..PARTS {
        let mut part = vec![0; len as usize / PARTS];
        output.read_exact(&mut part).expect("it goes on");
        got.extend(part);
        longest = longest.max(pop.move_on().await.len());
    }
    output.read_to_end(&mut got).expect("it goes on");
    client.ends_well();
    assert!(got == expected(len), "other bytes");
    one_connection(pop);
    longest
}

/// Who reads slowly fills all buffers on the way, those of the server among them.
#[tokio::test(flavor = "multi_thread")]
async fn a_download_is_whole_wherever_it_moves() {
    const LEN: u64 = 36_000_000;
    for version in VERSIONS {
        let mut pop = Pop::new().await;
        let longest = download(&mut pop, version, &format!("/bytes/{LEN}"), LEN).await;
        // What was encrypted and not sent was among what moved.
        assert!(longest > 60_000, "{longest}");
    }
}

/// The server itself sends little by little: nothing is in any buffer.
#[tokio::test(flavor = "multi_thread")]
async fn a_paced_download_is_whole_wherever_it_moves() {
    const LEN: u64 = 300_000;
    let mut pop = Pop::new().await;
    download(&mut pop, "1.3", &format!("/bytes/{LEN}/100000"), LEN).await;
}

/// Records of the client's are cut by the moves.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_whole_wherever_it_moves() {
    // Much more than the moves take.
    const LEN: u64 = 40_000_000;
    let bytes = expected(LEN);
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    for version in VERSIONS {
        let mut pop = Pop::new().await;
        let from = pop.file("upload");
        fs::write(&from, &bytes).unwrap();
        let data = format!("@{from}");
        let (client, mut output) = curl(&pop, version, "/sum", &["--data-binary", &data]);
        let sent = |pop: &Pop| {
            let seen = pop.switch.seen();
            let from_client = seen.iter().filter(|seen| seen.from_client);
            from_client
                .map(|seen| seen.packet.len() as u64)
                .sum::<u64>()
        };
        let mut cut = 0;
        for part in 1..=5 {
            eventually("the upload goes on", || sent(&pop) >= part * LEN / 30);
            // Between any two packets, which are shorter than records.
            pop.switch.park();
            // More than names and keys: a part of a record.
            cut += usize::from(pop.move_on().await.len() > 1000);
        }
        let mut answer = String::new();
        output.read_to_string(&mut answer).expect("an answer");
        client.ends_well();
        assert_eq!(answer, format!("{LEN} bytes, {sum:016x}\n"));
        assert!(cut > 0, "no record was cut");
        one_connection(&pop);
    }
}
