//! The state of a connection as bytes.
//!
//! | bytes | |
//! |---|---|
//! | 1 | form: 1 |
//! | 1 | whether the client may be owed a `KeyUpdate`: 0, 1 |
//! | 1, … | what s2n-tls serialized, after its length |
//! | 1, … | the name of the server that the client asked for; empty: none |
//! | 1, … | the application's protocol; empty: none |
//! | 1 | how many certificates of the client's follow |
//! | 3, … | for each its length, and its DER |
//! | 4, … | what was decrypted and not read |
//! | 4, … | what was received and not decrypted |
//! | 4, … | what was encrypted and not sent |
//! | 4, … | the application's part |
//!
//! Integers are big-endian. Nothing comes after it.

use std::hint::black_box;

use super::{
    Session, Unusable,
    wire::{OUTPUT_MAX, PLAINTEXT_MAX, RECORD_MAX},
};
use crate::Blob;

const FORM: u8 = 1;
/// s2n-tls takes chains of 7 at most, unless it is told to take longer ones.
const CERTIFICATES_MAX: usize = 32;
/// All certificates of a chain come in one message, of which s2n-tls takes 64 KiB; it adds
/// the authority that it trusts.
const CERTIFICATE_MAX: usize = 64 * 1024;

/// A state that borrows what is secret.
pub(super) struct State<'a> {
    pub owes_key_update: bool,
    pub serialized: &'a [u8],
    pub session: Session,
    pub plaintext: &'a [u8],
    pub input: &'a [u8],
    pub output: &'a [u8],
    pub application: &'a [u8],
}

impl<'a> State<'a> {
    pub fn encode(&self) -> Blob {
        let name = self.session.server_name.as_deref().unwrap_or_default();
        let protocol = self.session.application_protocol.as_deref();
        let protocol = protocol.unwrap_or_default();
        let certificates = &self.session.client_certificates;
        let longs = [self.plaintext, self.input, self.output, self.application];
        let len = 3
            + [self.serialized, name.as_bytes(), protocol]
                .map(|short| 1 + short.len())
                .iter()
                .sum::<usize>()
            + certificates.iter().map(|c| 3 + c.len()).sum::<usize>()
            + longs.map(|long| 4 + long.len()).iter().sum::<usize>();
        // With room for all of it from the beginning: so no copy is left behind.
        let mut bytes = Vec::with_capacity(len);
        bytes.extend([FORM, u8::from(self.owes_key_update)]);
        for short in [self.serialized, name.as_bytes(), protocol] {
            bytes.push(short.len() as u8);
            bytes.extend_from_slice(short);
        }
        bytes.push(certificates.len() as u8);
        for certificate in certificates {
            bytes.extend_from_slice(&(certificate.len() as u32).to_be_bytes()[1..]);
            bytes.extend_from_slice(certificate);
        }
        for long in longs {
            bytes.extend_from_slice(&(long.len() as u32).to_be_bytes());
            bytes.extend_from_slice(long);
        }
        debug_assert_eq!(bytes.len(), len);
        bytes.into()
    }

    pub fn decode(bytes: &'a [u8]) -> Result<Self, Unusable> {
        let mut rest = Rest(bytes);
        if rest.byte()? != FORM {
            return Err(Unusable("it has another form"));
        }
        let owes_key_update = match rest.byte()? {
            0 => false,
            1 => true,
            _ => return Err(Unusable("a mark is neither 0 nor 1")),
        };
        let serialized = rest.short()?;
        let server_name = match rest.short()? {
            [] => None,
            name => Some(str::from_utf8(name).map_err(|_| Unusable("a name is no UTF-8"))?),
        };
        let protocol = rest.short()?;
        let certificates = usize::from(rest.byte()?);
        if certificates > CERTIFICATES_MAX {
            return Err(Unusable("there are too many certificates"));
        }
        let mut client_certificates = Vec::with_capacity(certificates);
        for _ in 0..certificates {
            client_certificates.push(rest.long::<3>(CERTIFICATE_MAX)?.to_vec());
        }
        let state = Self {
            owes_key_update,
            serialized,
            session: Session {
                server_name: server_name.map(str::to_owned),
                application_protocol: (!protocol.is_empty()).then(|| protocol.to_vec()),
                client_certificates,
            },
            plaintext: rest.long::<4>(PLAINTEXT_MAX)?,
            input: rest.long::<4>(RECORD_MAX)?,
            output: rest.long::<4>(OUTPUT_MAX)?,
            application: rest.long::<4>(usize::MAX)?,
        };
        match rest.0 {
            [] => Ok(state),
            _ => Err(Unusable("there is more of it")),
        }
    }
}

/// What was not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Unusable> {
        let taken = self.0.split_off(..len);
        taken.ok_or(Unusable("it is cut short"))
    }

    fn byte(&mut self) -> Result<u8, Unusable> {
        Ok(self.take(1)?[0])
    }

    fn short(&mut self) -> Result<&'a [u8], Unusable> {
        let len = self.byte()?;
        self.take(usize::from(len))
    }

    /// Bytes after a length of `N` bytes.
    fn long<const N: usize>(&mut self, max: usize) -> Result<&'a [u8], Unusable> {
        let len = self.take(N)?.iter();
        let len = len.fold(0, |len, &byte| len << 8 | usize::from(byte));
        if len > max {
            return Err(Unusable("a part of it is too long"));
        }
        self.take(len)
    }
}

/// Whether this is what s2n-tls makes of a connection that can be moved. It trusts what it
/// is given, and would take other versions, and ciphers of other versions, too. Its form
/// stands in `s2n_connection_serialize.c`: 8 form, 2 version, 2 cipher suite, twice 8 a
/// sequence number, 2 longest fragment; then, up to TLS 1.2, 48 master secret and twice 32
/// random, or three secrets of a hash's length.
pub(super) fn check_serialized(bytes: &[u8]) -> Result<(), Unusable> {
    const FIXED: usize = 30;
    let form = 1u64.to_be_bytes();
    let Some(([3, minor, suite_high, suite_low], rest)) = bytes
        .strip_prefix(&form)
        .and_then(|rest| rest.split_first_chunk())
    else {
        return Err(Unusable("s2n-tls did not serialize it"));
    };
    let fragment = rest.get(16..18).map(|f| u16::from_be_bytes([f[0], f[1]]));
    // AES-256-GCM's hash has 48 bytes, that of the others 32 (RFC 8446, B.4).
    let secrets = match (minor, suite_high, suite_low) {
        (4, 0x13, 0x02) => 3 * 48,
        (4, 0x13, 0x01 | 0x03) => 3 * 32,
        (3, high, _) if *high != 0x13 => 48 + 2 * 32,
        _ => return Err(Unusable("its version has no such cipher")),
    };
    // The least that is a fragment's longest (RFC 6066, 4), to the most.
    if !fragment.is_some_and(|len| (512..=PLAINTEXT_MAX).contains(&usize::from(len))) {
        return Err(Unusable("its fragments have no such length"));
    }
    if bytes.len() != FIXED + secrets {
        return Err(Unusable("it has another length than its cipher says"));
    }
    Ok(())
}

/// Overwrites what functions that have returned have left below on the stack: s2n-tls
/// has keys there, and does not wipe all of them.
#[inline(never)]
pub(super) fn wipe_stack() {
    // Whoever gets a reference to it may read it: so it is there.
    black_box(&[0u8; 32 * 1024]);
}
