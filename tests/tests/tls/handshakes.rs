//! One handshake, however often its connection moves: `openssl s_client`.

use std::fs;

use super::{
    pop::{HOSTS, NAME, Pop, Wire, service},
    program::Program,
};

/// A client that shows a certificate, asks for names, and prints every message of TLS.
fn openssl(pop: &Pop, version: &str) -> Program {
    let service = service().to_string();
    let files = ["authority.pem", "client.pem", "client.key"].map(|file| pop.file(file));
    let [authority, certificate, key] = &files;
    let program = pop.run(
        "openssl",
        &[
            "s_client",
            "-connect",
            &service,
            "-servername",
            NAME,
            "-alpn",
            "http/1.1",
            "-CAfile",
            authority,
            "-verify_return_error",
            "-cert",
            certificate,
            "-key",
            key,
            "-msg",
            version,
        ],
    );
    program.prints("Verify return code: 0 (ok)", 1);
    program
}

/// Asks who is there, and insists on everything but the host and the number of moves
/// staying the same: gives the connection's id.
fn who(pop: &Pop, client: &mut Program, asked: usize, moves: usize, version: &str) -> String {
    client.types("GET /who HTTP/1.1\r\n\r\n");
    client.prints("\"cipher\":", asked);
    let printed = client.printed();
    let from = printed.rfind("{\"id\":\"").expect("an answer");
    let answer = &printed[from..];
    let answer = &answer[..=answer.find('}').expect("a whole one")];
    let id = answer[7..23].to_owned();
    let digest = fs::read_to_string(pop.file("client.sha256")).expect("written");
    let host = HOSTS[pop.host()];
    let expected = format!(
        "{{\"id\":\"{id}\",\"moves\":{moves},\"host\":\"{host}\",\"server_name\":\"{NAME}\",\"alpn\":\"http/1.1\",\"client\":\"{digest}\",\"version\":\"{version}\",\"cipher\":\""
    );
    assert!(answer.starts_with(&expected), "{answer}\n{expected}");
    id
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

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_tls_1_2_goes_on_and_is_known() {
    let mut pop = Pop::new().await;
    let mut client = openssl(&pop, "-tls1_2");
    let id = who(&pop, &mut client, 1, 0, "TLS12");
    for moves in 1..=5 {
        pop.move_on().await;
        assert_eq!(who(&pop, &mut client, moves + 1, moves, "TLS12"), id);
    }
    assert!(!client.printed().contains("RENEGOTIATING"));
    one_connection(&pop);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_tls_1_3_goes_on_and_keys_change_before_and_after() {
    let mut pop = Pop::new().await;
    let mut client = openssl(&pop, "-tls1_3");
    let mut asked = 0;
    let mut told = 0;
    let mut ask = |pop: &Pop, client: &mut Program, moves| {
        asked += 1;
        who(pop, client, asked, moves, "TLS13")
    };
    // `K` asks the server to change its keys, too; `k` does not.
    let mut update = |client: &mut Program, letter: &str| {
        told += 1;
        client.types(letter);
        client.prints(">>> TLS 1.3, Handshake [length 0005], KeyUpdate", told);
    };
    let id = ask(&pop, &mut client, 0);
    update(&mut client, "K\n");
    assert_eq!(ask(&pop, &mut client, 0), id);
    update(&mut client, "k\n");
    assert_eq!(ask(&pop, &mut client, 0), id);
    for moves in 1..=4 {
        // In this order keys change right before a move, with no data in between; then
        // the server owes its part.
        update(&mut client, "K\n");
        pop.move_on().await;
        assert_eq!(ask(&pop, &mut client, moves), id);
        client.prints("<<< TLS 1.3, Handshake [length 0005], KeyUpdate", 1 + moves);
        update(&mut client, "k\n");
        assert_eq!(ask(&pop, &mut client, moves), id);
    }
    one_connection(&pop);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_is_resumed_goes_on_where_it_was() {
    let mut pop = Pop::new().await;
    let mut client = openssl(&pop, "-tls1_3");
    let id = who(&pop, &mut client, 1, 0, "TLS13");
    for asked in 2..5 {
        pop.export_and_resume().await;
        assert_eq!(who(&pop, &mut client, asked, 0, "TLS13"), id);
    }
    pop.move_on().await;
    assert_eq!(who(&pop, &mut client, 5, 1, "TLS13"), id);
    one_connection(&pop);
}
