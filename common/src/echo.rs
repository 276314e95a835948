//! The echo by which hosts hear each other's kernels: asked by an agent, answered
//! by XDP, so that it says whether the kernel lives and nothing about the agent.
//!
//! Question and answer have one length, so nothing is amplified; both are signed
//! with the POP's echo key, so neither can be forged; both are bound to the
//! address of the one who asks, so that a recorded question draws answers to
//! nobody else; and an answer repeats the question's nonce, so an old one is
//! worthless. They travel as the UDP payload of packets between the hosts' fabric
//! addresses, on the port of the agents.

use crate::{
    net::Address,
    session::{SessionKey, Sip},
};

/// An echo: the whole UDP payload, integers big-endian.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Echo {
    /// [`Echo::MAGIC`].
    pub magic: [u8; 4],
    /// The host that asks.
    pub from: [u8; 2],
    /// The host that is asked, and answers.
    pub to: [u8; 2],
    /// Random bytes of the one who asks.
    pub nonce: [u8; 8],
    /// In an answer, the incarnation of the one who answers; zero in a question.
    pub incarnation: [u8; 8],
    /// SipHash-1-3 over all before it and the address of the one who asks, under
    /// an echo key: an answer's is the question's.
    pub tag: [u8; 8],
}

const _: () = assert!(size_of::<Echo>() == 32 && align_of::<Echo>() == 1);

impl Echo {
    /// How an echo begins: "HmE" and a version.
    pub const MAGIC: [u8; 4] = [0x48, 0x6d, 0x45, 0x01];
    /// Length in bytes.
    pub const LEN: usize = size_of::<Self>();

    /// The tag that belongs to this echo under a key. `asker` is the fabric address
    /// of the host that asks, in questions and in answers.
    #[inline(always)]
    pub const fn tag(&self, asker: &Address, key: &SessionKey) -> [u8; 8] {
        let f = &self.from;
        let t = &self.to;
        let head = u32::from_le_bytes(self.magic) as u64
            | (u32::from_le_bytes([f[0], f[1], t[0], t[1]]) as u64) << 32;
        let mut hash = Sip::new(key);
        hash.word(head);
        hash.word(u64::from_le_bytes(self.nonce));
        hash.word(u64::from_le_bytes(self.incarnation));
        hash.word(asker.word(0));
        hash.word(asker.word(1));
        hash.word(40 << 56);
        hash.finish().to_le_bytes()
    }
}
