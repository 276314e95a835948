//! Captured packets as a pcapng file (draft-ietf-opsawg-pcapng), piece by piece.
//!
//! A packet is one block as it came and, where the program changed it or sent it on, one more
//! as it went. The comment of both names the packet's number and its outcome. What could not
//! be captured stands in the statistics at the end.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use homing_common::outcome::{Outcome, Verdict};
use pcap_file::{
    DataLink,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
        },
    },
};

use crate::datapath::beside::capture::{Counts, Packet, Snapped};

/// Flags: the direction.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;
/// Times are in nanoseconds.
const NANOSECONDS: u8 = 9;

/// What the comment of each packet's first block says, and no other's.
pub const CAME: &str = "as it came";
/// What that of its second one says, likewise.
pub const WENT: &str = "as it went";
/// What the comment of the statistics begins with.
pub const SUM: &str = "homing captured";

/// Writes a capture.
pub struct Pcapng {
    writer: PcapNgWriter<Vec<u8>>,
    /// The numbers of interfaces in the file, by their index.
    interfaces: BTreeMap<u32, u32>,
    name_of: fn(u32) -> String,
    snap: u32,
    packets: u64,
}

impl Pcapng {
    /// Begins. `snap`: bytes of each frame at most. `name_of`: an interface's name.
    ///
    /// # Errors
    ///
    /// None: it is written to memory.
    pub fn begin(snap: u32, name_of: fn(u32) -> String) -> Result<Self> {
        Ok(Self {
            writer: PcapNgWriter::new(Vec::new())?,
            interfaces: BTreeMap::new(),
            name_of,
            snap,
            packets: 0,
        })
    }

    /// How many packets were written.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// How many bytes wait to be taken.
    pub fn waiting(&self) -> usize {
        self.writer.get_ref().len()
    }

    /// What has been written since this was called last.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }

    /// Writes a packet.
    pub fn packet(&mut self, packet: &Packet) -> Result<()> {
        self.packets += 1;
        let outcome = packet.outcome;
        let number = self.packets;
        let comment = |what: &str| {
            let (label, help) = (outcome.label(), outcome.help().trim());
            format!("homing: packet {number}, {what}; {label}: {help}")
        };
        let came = self.interface(packet.ifindex)?;
        let first = comment(CAME);
        self.block(came, packet, &packet.came, INBOUND, first)?;
        if let Some(went) = &packet.went {
            let (interface, direction) = match packet.out_ifindex {
                0 => (came, direction(outcome)),
                index => (self.interface(index)?, OUTBOUND),
            };
            let second = comment(WENT);
            self.block(interface, packet, went, direction, second)?;
        }
        Ok(())
    }

    /// Writes what was counted, and ends.
    pub fn end(&mut self, at: SystemTime, counts: Counts, behind: u64) -> Result<()> {
        let lost = counts.limited + counts.full + behind;
        let mut text = format!(
            "{SUM} {} packets; {lost} more were wanted ({} beyond the limit of a moment, {} not \
             read in time, {behind} not written in time)",
            self.packets, counts.limited, counts.full
        );
        if counts.away > 0 {
            text += &format!(
                "; {} times an interface had come back, and was not looked at for up to a second",
                counts.away
            );
        }
        if !counts.blind.is_zero() {
            text += &format!("; for {:.1?} nothing was looked at", counts.blind);
        }
        if self.interfaces.is_empty() {
            // Statistics are of an interface; the loopback is always there.
            self.interface(1)?;
        }
        let block = InterfaceStatisticsBlock {
            interface_id: 0,
            timestamp: high_word_first(since_epoch(at).as_nanos() as u64),
            options: vec![
                InterfaceStatisticsOption::Comment(Cow::Owned(text)),
                InterfaceStatisticsOption::IsbIfRecv(counts.wanted),
                InterfaceStatisticsOption::IsbIfDrop(lost),
            ],
        };
        self.writer.write_pcapng_block(block)?;
        Ok(())
    }

    /// The number of an interface in the file, which describes it before the first packet.
    fn interface(&mut self, index: u32) -> Result<u32> {
        if let Some(number) = self.interfaces.get(&index) {
            return Ok(*number);
        }
        let number = self.interfaces.len() as u32;
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snap,
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned((self.name_of)(index))),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.writer.write_pcapng_block(block)?;
        self.interfaces.insert(index, number);
        Ok(number)
    }

    fn block(
        &mut self,
        interface: u32,
        packet: &Packet,
        frame: &Snapped,
        direction: u32,
        comment: String,
    ) -> Result<()> {
        let block = EnhancedPacketBlock {
            interface_id: interface,
            timestamp: since_epoch(packet.at),
            original_len: frame.len,
            data: Cow::Borrowed(&frame.bytes),
            options: vec![
                EnhancedPacketOption::Comment(Cow::Owned(comment)),
                EnhancedPacketOption::Flags(direction),
            ],
        };
        self.writer.write_pcapng_block(block)?;
        Ok(())
    }
}

/// Where a packet goes as it went: what is stripped goes up.
fn direction(outcome: Outcome) -> u32 {
    match outcome.verdict() {
        Verdict::Forward => OUTBOUND,
        Verdict::Pass | Verdict::Drop => INBOUND,
    }
}

/// A time as the format has it: two words, the high one first, of which the library writes
/// one of this machine's order.
fn high_word_first(time: u64) -> u64 {
    match cfg!(target_endian = "little") {
        true => time.rotate_left(32),
        false => time,
    }
}

fn since_epoch(at: SystemTime) -> Duration {
    // Before 1970 there were no packets.
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use pcap_file::pcapng::{Block, PcapNgReader};

    use super::*;

    fn snapped(bytes: &[u8], len: u32) -> Snapped {
        Snapped {
            bytes: bytes.to_vec(),
            len,
        }
    }

    fn name(index: u32) -> String {
        format!("if{index}")
    }

    #[test]
    fn what_is_written_is_read_again() {
        let at = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let mut file = Pcapng::begin(64, name).unwrap();
        let packet = |outcome, out_ifindex, went: Option<&[u8]>| Packet {
            at,
            ifindex: 2,
            out_ifindex,
            outcome,
            came: snapped(&[1, 2, 3], 90),
            went: went.map(|bytes| snapped(bytes, 110)),
        };
        file.packet(&packet(Outcome::LocalSocket, 0, None)).unwrap();
        let mut bytes = file.take();
        file.packet(&packet(Outcome::Redirected, 3, Some(&[4])))
            .unwrap();
        file.packet(&packet(Outcome::StrippedSyn, 0, Some(&[5])))
            .unwrap();
        let counts = Counts {
            wanted: 9,
            limited: 1,
            full: 2,
            away: 3,
            blind: Duration::from_secs(4),
        };
        file.end(at, counts, 3).unwrap();
        bytes.extend(file.take());
        assert_eq!(file.packets(), 3);

        let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
        let (mut names, mut seen, mut sums) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(block) = reader.next_block() {
            match block.unwrap() {
                Block::InterfaceDescription(interface) => {
                    names.extend(interface.options.iter().filter_map(|option| match option {
                        InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
                        _ => None,
                    }))
                }
                Block::EnhancedPacket(packet) => {
                    assert_eq!(packet.timestamp, since_epoch(at));
                    let (mut comment, mut flags) = (String::new(), 0);
                    for option in &packet.options {
                        match option {
                            EnhancedPacketOption::Comment(text) => comment = text.to_string(),
                            EnhancedPacketOption::Flags(set) => flags = *set,
                            _ => {}
                        }
                    }
                    let label = comment.find("; ").unwrap();
                    let help = label + comment[label..].find(": ").unwrap();
                    let which = &comment[..help];
                    seen.push((
                        packet.interface_id,
                        packet.data.to_vec(),
                        packet.original_len,
                        flags,
                        which.to_owned(),
                    ));
                }
                Block::InterfaceStatistics(sum) => sums.push(sum.into_owned()),
                _ => {}
            }
        }
        assert_eq!(names, ["if2", "if3"]);
        let came = |which: &str| {
            let which = format!("homing: packet {which}");
            (0, vec![1, 2, 3], 90, INBOUND, which)
        };
        let went = |interface, byte: u8, flags, which: &str| {
            let which = format!("homing: packet {which}");
            (interface, vec![byte], 110, flags, which)
        };
        let wanted = [
            came("1, as it came; local_socket"),
            came("2, as it came; redirected"),
            went(1, 4, OUTBOUND, "2, as it went; redirected"),
            came("3, as it came; stripped_syn"),
            went(0, 5, INBOUND, "3, as it went; stripped_syn"),
        ];
        assert_eq!(seen, wanted);
        let [sum] = &sums[..] else { panic!("{sums:?}") };
        assert!(
            sum.options
                .contains(&InterfaceStatisticsOption::IsbIfRecv(9))
        );
        assert!(
            sum.options
                .contains(&InterfaceStatisticsOption::IsbIfDrop(6))
        );
        let text = format!("{:?}", sum.options);
        assert!(
            text.contains("homing captured 3 packets; 6 more were wanted"),
            "{text}"
        );
        assert!(text.contains("; 3 times an interface"), "{text}");
        assert!(text.contains("; for 4.0s nothing"), "{text}");
    }

    #[test]
    fn one_without_packets_is_a_file_too() {
        let mut file = Pcapng::begin(64, name).unwrap();
        file.end(UNIX_EPOCH, Counts::default(), 0).unwrap();
        let bytes = file.take();
        let mut reader = PcapNgReader::new(&bytes[..]).unwrap();
        let mut blocks = 0;
        while let Some(block) = reader.next_block() {
            block.unwrap();
            blocks += 1;
        }
        assert_eq!(blocks, 2);
    }
}
