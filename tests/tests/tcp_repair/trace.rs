//! What the client's wire carried, read and judged.

use etherparse::{SlicedPacket, TcpOptionElement, TransportSlice};
use homing_tests::random;

use super::switch::Seen;

/// The seeds of what clients and servers say.
pub const UP: u64 = 1;
pub const DOWN: u64 = 2;

/// A segment, with its number counted from its side's SYN.
#[derive(Debug)]
pub struct Segment {
    pub from_client: bool,
    /// The offset in what its sender says.
    pub offset: u64,
    pub payload: Vec<u8>,
    pub fin: bool,
    pub rst: bool,
    /// How much of what the other side says it acknowledges; a FIN counts.
    pub acknowledged: u64,
    /// How far it lets the other side go, from where that begins.
    window_end: u64,
    timestamp: Option<u32>,
}

/// One side of a trace, while it is read.
#[derive(Clone, Copy)]
struct Side {
    /// The number after its SYN.
    first: u32,
    /// The highest offset so far.
    highest: u64,
    /// By how many bits its windows are shifted.
    scale: u8,
    scales: bool,
}

impl Side {
    /// The offset of a number, nearest to the highest one; before the first byte counts as
    /// there.
    fn offset(&self, number: u32) -> u64 {
        let step = number.wrapping_sub(self.first.wrapping_add(self.highest as u32)) as i32;
        self.highest.saturating_add_signed(i64::from(step))
    }
}

/// Reads a trace from its first SYNs on.
pub fn read(seen: &[Seen]) -> Vec<Segment> {
    let mut sides: [Option<Side>; 2] = [None; 2];
    let mut segments = Vec::new();
    for Seen {
        from_client,
        packet,
    } in seen
    {
        let sliced = SlicedPacket::from_ip(packet).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("no TCP");
        };
        let (own, other) = (usize::from(*from_client), usize::from(!*from_client));
        let (mut scale, mut timestamp) = (None, None);
        for option in tcp.options_iterator() {
            match option.unwrap() {
                TcpOptionElement::WindowScale(bits) => scale = Some(bits),
                TcpOptionElement::Timestamp(value, _) => timestamp = Some(value),
                _ => {}
            }
        }
        let number = tcp.sequence_number();
        if tcp.syn() {
            sides[own] = Some(Side {
                first: number.wrapping_add(1),
                highest: 0,
                scale: scale.unwrap_or(0),
                scales: scale.is_some(),
            });
            continue;
        }
        let (Some(mut side), Some(mut peer)) = (sides[own], sides[other]) else {
            panic!("a segment before both SYNs")
        };
        let offset = side.offset(number);
        let payload = tcp.payload().to_vec();
        side.highest = side.highest.max(offset + payload.len() as u64);
        let acknowledged = peer.offset(tcp.acknowledgment_number());
        peer.highest = peer.highest.max(acknowledged);
        let shift = if side.scales && peer.scales {
            side.scale
        } else {
            0
        };
        (sides[own], sides[other]) = (Some(side), Some(peer));
        segments.push(Segment {
            from_client: *from_client,
            offset,
            payload,
            fin: tcp.fin(),
            rst: tcp.rst(),
            acknowledged,
            window_end: acknowledged + (u64::from(tcp.window_size()) << shift),
            timestamp,
        });
    }
    segments
}

/// Insists that there is no reset, that every byte is the one that belongs there and none
/// was left out, that clocks go on, and that nobody takes back room that it has offered.
pub fn judge(segments: &[Segment]) {
    for from_client in [true, false] {
        let seed = if from_client { UP } else { DOWN };
        let (mut parts, mut window_end, mut clock) = (Vec::new(), 0, None);
        for (at, segment) in segments.iter().enumerate() {
            if segment.from_client != from_client {
                continue;
            }
            assert!(!segment.rst, "a reset: {segment:?}");
            let mut expected = vec![0; segment.payload.len()];
            random::stream(seed, segment.offset, &mut expected);
            assert!(
                segment.payload == expected,
                "wrong bytes at {}",
                segment.offset
            );
            // A shifted window loses its low bits.
            let shrinks = segment.window_end + (1 << 14) < window_end;
            assert!(!shrinks, "a window that ended at {window_end}: {segment:?}");
            window_end = window_end.max(segment.window_end);
            if let (Some(before), Some(now)) = (clock, segment.timestamp) {
                let step = u32::wrapping_sub(now, before) as i32;
                assert!(
                    step >= 0,
                    "the clock goes back by {} (of the client: {from_client}): {at} of {}, {} of \
                     {} bytes",
                    -step,
                    segments.len(),
                    segment.offset,
                    segment.payload.len(),
                );
            }
            clock = segment.timestamp.or(clock);
            if !segment.payload.is_empty() {
                parts.push((segment.offset, segment.payload.len() as u64));
            }
        }
        parts.sort_unstable();
        let end = parts.iter().fold(0, |end, &(offset, len)| {
            assert!(offset <= end, "nothing from {end} to {offset}");
            end.max(offset + len)
        });
        let others = segments.iter().filter(|s| s.from_client != from_client);
        let acknowledged = others.map(|segment| segment.acknowledged).max();
        // A FIN counts as one.
        assert!(acknowledged <= Some(end + 1), "{acknowledged:?} of {end}");
    }
}

/// How many segments with data or FIN from `start` on repeat what their sender sent
/// before: the client's, and the hosts'.
pub fn repeated(segments: &[Segment], start: usize) -> [usize; 2] {
    [true, false].map(|from_client| {
        let (mut end, mut count) = (0, 0);
        for (at, segment) in segments.iter().enumerate() {
            let len = segment.payload.len() as u64 + u64::from(segment.fin);
            if segment.from_client != from_client || len == 0 {
                continue;
            }
            count += usize::from(at >= start && segment.offset < end);
            end = end.max(segment.offset + len);
        }
        count
    })
}
