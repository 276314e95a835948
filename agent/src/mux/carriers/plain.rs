//! Carriers in clear text: both sides prove the key, and what each says of itself; what
//! follows is neither secret nor protected. For a fabric that the operator trusts.

use std::io;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::preamble::{HELLO_LEN, Preamble};
use crate::pop::keys::Key;

/// What keys of proofs are derived for.
const CONTEXT: &str = "homing v1 2026 carrier in clear text";

const NONCE_LEN: usize = 16;
const PROOF_LEN: usize = 32;

/// Who proves the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Dialer = 0,
    Acceptor = 1,
}

/// Both nonces, and the key that what is said after them is proven by.
pub(super) struct Proof {
    ours: Role,
    key: Key,
}

impl Proof {
    /// Exchanges nonces, dialer first. Each proof hangs on both, so none can be said twice.
    pub async fn begin(
        tcp: &mut TcpStream,
        ours: Role,
        preamble: &Preamble,
        key: &Key,
    ) -> io::Result<Self> {
        let mut nonces = [[0; NONCE_LEN]; 2];
        getrandom::fill(&mut nonces[ours as usize]).map_err(io::Error::other)?;
        if ours == Role::Dialer {
            tcp.write_all(&nonces[0]).await?;
            tcp.read_exact(&mut nonces[1]).await?;
        } else {
            tcp.read_exact(&mut nonces[0]).await?;
            tcp.write_all(&nonces[1]).await?;
        }
        let secret = blake3::derive_key(CONTEXT, &preamble.secret(key));
        let key = *blake3::keyed_hash(&secret, nonces.as_flattened()).as_bytes();
        Ok(Self { ours, key })
    }

    fn of(&self, role: Role, hello: &[u8; HELLO_LEN]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&[role as u8]).update(hello);
        hasher.finalize()
    }

    /// Says a hello, proven.
    pub async fn say(&self, tcp: &mut TcpStream, hello: &[u8; HELLO_LEN]) -> io::Result<()> {
        let mut bytes = hello.to_vec();
        bytes.extend(self.of(self.ours, hello).as_bytes());
        tcp.write_all(&bytes).await
    }

    /// Hears the other side's hello.
    pub async fn hear(&self, tcp: &mut TcpStream) -> io::Result<[u8; HELLO_LEN]> {
        let (mut hello, mut proof) = ([0; HELLO_LEN], [0; PROOF_LEN]);
        tcp.read_exact(&mut hello).await?;
        tcp.read_exact(&mut proof).await?;
        let theirs = match self.ours {
            Role::Dialer => Role::Acceptor,
            Role::Acceptor => Role::Dialer,
        };
        // Hashes are compared in constant time.
        match self.of(theirs, &hello) == proof {
            true => Ok(hello),
            false => Err(io::Error::other("the POP's key was not proven")),
        }
    }
}
