//! The Internet checksum (RFC 1071).

/// The checksum of an IPv4 header without options whose checksum field is zero.
///
/// The words are summed as they lie in memory: the sum does not depend on the
/// byte order as long as it is stored the way it was read.
#[inline(always)]
pub fn ipv4_header(words: [u32; 5]) -> u16 {
    let mut sum = 0u64;
    for word in words {
        sum += word as u64;
    }
    // Five words make 35 bits: 20, then 17, then 16 are left.
    for _ in 0..3 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of words whose sum is given.
#[inline(always)]
pub fn of_sum(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let mut sum = ((sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32)) as u32;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(header: [u8; 20]) -> [u32; 5] {
        core::array::from_fn(|i| u32::from_ne_bytes(header[i * 4..i * 4 + 4].try_into().unwrap()))
    }

    /// The plain algorithm of RFC 1071, 16 bits at a time.
    fn reference(header: [u8; 20]) -> u16 {
        let mut sum: u32 = header
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn agrees_with_the_plain_algorithm() {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..10_000 {
            let header: [u8; 20] = core::array::from_fn(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            });
            let sum = ipv4_header(words(header));
            assert_eq!(u16::from_be_bytes(sum.to_ne_bytes()), reference(header));
        }
        for byte in [0x00, 0xff] {
            let sum = ipv4_header(words([byte; 20]));
            assert_eq!(u16::from_be_bytes(sum.to_ne_bytes()), reference([byte; 20]));
        }
    }
}
