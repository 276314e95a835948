//! What a source remembers of a connection that has gone.

use homing_tests::sandbox::eventually;

use super::pop::{NAME, Pop, service};

/// The secrets in a state (its form stands in `client/src/tls/state.rs`, that of
/// s2n-tls in its `s2n_connection_serialize.c`): 16 bytes from both ends of each.
fn secrets(state: &[u8]) -> Vec<Vec<u8>> {
    let len = usize::from(state[2]);
    let serialized = &state[3..3 + len];
    let secrets = &serialized[30..];
    let each = match serialized[9] {
        // The master secret; the random numbers after it have gone over the wire.
        3 => secrets[..48].chunks(48),
        // The client's, the server's, and the one for resumption.
        _ => secrets.chunks(secrets.len() / 3),
    };
    each.flat_map(|secret| [&secret[..16], &secret[secret.len() - 16..]])
        .map(<[u8]>::to_vec)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_forgets_the_keys() {
    for version in ["-tls1_2", "-tls1_3"] {
        let mut pop = Pop::new().await;
        let service = service().to_string();
        let mut client = pop.run(
            "openssl",
            &[
                "s_client",
                "-connect",
                &service,
                "-servername",
                NAME,
                version,
            ],
        );
        let mut asked = 0;
        let mut ask = |pop: &Pop, client: &mut super::program::Program| {
            asked += 1;
            client.types("GET /who HTTP/1.1\r\n\r\n");
            client.prints("\"cipher\":", asked);
            pop.host()
        };
        ask(&pop, &mut client);
        // The first one has made the keys in its handshake, the others had them in a state.
        for _ in 0..4 {
            let source = pop.host();
            let state = pop.move_on().await;
            let secrets = secrets(&state);
            let target = ask(&pop, &mut client);
            let [source, target] = [source, target].map(|host| &pop.servers[host]);
            let knows = secrets.iter().filter(|secret| target.remembers(secret));
            assert_eq!(knows.count(), secrets.len(), "the target knows them");
            eventually(&format!("the source forgets ({version})"), || {
                !secrets.iter().any(|secret| source.remembers(secret))
            });
        }
    }
}
