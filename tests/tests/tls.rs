//! TLS connections that change hosts under clients that know nothing of it: `openssl
//! s_client` and `curl`. The server is the example `client/examples/tls`, one process on
//! each of two hosts (network namespaces on a switch of the test's own, which sees every
//! packet); what moves is the real state of TCP, of TLS and of HTTP. An agent's end for
//! each host and the order of a move are the test's own, but for `lab`, where all of a POP
//! is there. Needs root.

mod tls {
    mod downloads;
    mod handshakes;
    mod lab;
    mod pop;
    mod program;
    mod wiped;
}

#[path = "tcp_repair/machine.rs"]
mod machine;
#[path = "tcp_repair/switch.rs"]
#[expect(dead_code, reason = "some of it is for tcp_repair alone")]
mod switch;
