//! Frames out of a capture file, pcap or pcapng, as hexadecimal digits.

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context as _, Result, bail};
use pcap_file::{
    DataLink,
    pcap::PcapReader,
    pcapng::{
        Block, PcapNgReader,
        blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
    },
};

use crate::{admin::pcapng, datapath::beside::trial::FRAME_MAX};

/// What a pcapng file begins with.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// Reads up to `count` frames, leaving out the first `skip`, and what a capture of Homing's has
/// of packets as they went. If the file breaks off behind some, they are what there is.
///
/// # Errors
///
/// The file cannot be read, is no capture file, is of a link layer that says nothing of IP,
/// or has no such packets.
pub(super) fn read(path: &Path, skip: u64, count: usize) -> Result<Vec<String>> {
    let refused = || {
        format!(
            "cannot explain the packets of {} (for a session: homing explain CLIENT SERVICE)",
            path.display()
        )
    };
    let mut frames = Frames {
        skip,
        count,
        digits: Vec::new(),
    };
    match frames.read(path) {
        Err(error) if frames.digits.is_empty() => return Err(error.context(refused())),
        Err(error) => eprintln!(
            "homing: {} breaks off behind the packets that follow: {error:#}",
            path.display()
        ),
        Ok(()) => {}
    }
    if frames.digits.is_empty() {
        return Err(anyhow::anyhow!("it has no packets behind the first {skip}").context(refused()));
    }
    Ok(frames.digits)
}

struct Frames {
    skip: u64,
    count: usize,
    digits: Vec<String>,
}

impl Frames {
    fn read(&mut self, path: &Path) -> Result<()> {
        let mut magic = [0; 4];
        File::open(path)?
            .read_exact(&mut magic)
            .context("it is too short for a capture file")?;
        let file = File::open(path)?;
        match magic {
            PCAPNG => self.pcapng(file),
            _ => self.pcap(file),
        }
    }

    fn pcap(&mut self, file: File) -> Result<()> {
        let mut reader = PcapReader::new(file).context("it is neither pcap nor pcapng")?;
        let link = reader.header().datalink;
        // Raw, because a packet that is longer than what was captured of it is right.
        while let Some(packet) = reader.next_raw_packet()
            && self.digits.len() < self.count
        {
            let packet = packet?;
            self.take(link, &packet.data, packet.orig_len)?;
        }
        Ok(())
    }

    fn pcapng(&mut self, file: File) -> Result<()> {
        let mut reader = PcapNgReader::new(file)?;
        let mut links = Vec::new();
        while let Some(block) = reader.next_block()
            && self.digits.len() < self.count
        {
            match block? {
                Block::SectionHeader(_) => links.clear(),
                Block::InterfaceDescription(interface) => links.push(interface.linktype),
                Block::EnhancedPacket(packet) if went(&packet) => {}
                Block::EnhancedPacket(packet) => {
                    let link = links.get(packet.interface_id as usize).copied();
                    let link = link.context("a packet is of no interface")?;
                    self.take(link, &packet.data, packet.original_len)?;
                }
                Block::SimplePacket(packet) => {
                    let link = links.first().copied();
                    let link = link.context("a packet is of no interface")?;
                    self.take(link, &packet.data, packet.original_len)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn take(&mut self, link: DataLink, data: &[u8], len: u32) -> Result<()> {
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(());
        }
        let mut frame = ethernet(link, data)?;
        // What was cut off is payload, which nothing depends on.
        let cut = (len as usize).saturating_sub(data.len());
        // What is too long to be tried is told so by its first bytes, too.
        let len = frame.len().saturating_add(cut).min(FRAME_MAX + 1);
        frame.resize(len, 0);
        let digits = frame.iter().map(|byte| format!("{byte:02x}"));
        self.digits.push(digits.collect());
        Ok(())
    }
}

/// Whether it is what `homing capture` wrote of a packet as it went: it did not come.
fn went(packet: &EnhancedPacketBlock<'_>) -> bool {
    packet.options.iter().any(|option| {
        matches!(option, EnhancedPacketOption::Comment(text)
            if text.starts_with("homing: packet ") && text.contains(pcapng::WENT))
    })
}

/// A packet as an Ethernet frame.
fn ethernet(link: DataLink, data: &[u8]) -> Result<Vec<u8>> {
    let (ether_type, packet) = match link {
        DataLink::ETHERNET => return Ok(data.to_vec()),
        DataLink::IPV4 => (Some(IPV4), data),
        DataLink::IPV6 => (Some(IPV6), data),
        DataLink::RAW => {
            let version = data.first().map(|byte| byte >> 4);
            (Some(if version == Some(6) { IPV6 } else { IPV4 }), data)
        }
        DataLink::LINUX_SLL => (pair(data, 14), data.get(16..).unwrap_or_default()),
        DataLink::LINUX_SLL2 => (pair(data, 0), data.get(20..).unwrap_or_default()),
        other => bail!(
            "its packets have a link layer ({other:?}) that is not read; capture at an Ethernet \
             interface"
        ),
    };
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(ether_type.context("a packet is cut short before its protocol")?);
    frame.extend_from_slice(packet);
    Ok(frame)
}

fn pair(data: &[u8], at: usize) -> Option<[u8; 2]> {
    data.get(at..at + 2)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::{borrow::Cow, time::Duration};

    use pcap_file::{
        pcap::{PcapHeader, PcapPacket, PcapWriter},
        pcapng::{
            PcapNgWriter,
            blocks::{
                enhanced_packet::EnhancedPacketBlock,
                interface_description::InterfaceDescriptionBlock,
            },
        },
    };

    use super::*;
    use crate::admin::fake::Folder;

    const IP: [u8; 3] = [0x45, 1, 2];

    fn pcap(folder: &Folder, link: DataLink, packets: &[(&[u8], u32)]) -> std::path::PathBuf {
        let path = folder.0.join("a.pcap");
        let header = PcapHeader {
            datalink: link,
            snaplen: 64,
            ..PcapHeader::default()
        };
        let file = File::create(&path).unwrap();
        let mut writer = PcapWriter::with_header(file, header).unwrap();
        for (data, len) in packets {
            let packet = PcapPacket::new(Duration::ZERO, *len, data);
            writer.write_packet(&packet).unwrap();
        }
        path
    }

    #[test]
    fn each_link_layer_becomes_ethernet() {
        let folder = Folder::new();
        let sll: Vec<u8> = [&[0; 14][..], &IPV4, &IP].concat();
        let sll2: Vec<u8> = [&IPV4[..], &[0; 18], &IP].concat();
        let cases: [(DataLink, &[u8]); 4] = [
            (DataLink::RAW, &IP),
            (DataLink::IPV4, &IP),
            (DataLink::LINUX_SLL, &sll),
            (DataLink::LINUX_SLL2, &sll2),
        ];
        for (link, data) in cases {
            let path = pcap(&folder, link, &[(data, data.len() as u32)]);
            let frames = read(&path, 0, 10).unwrap();
            assert_eq!(frames, ["0200000000020200000000010800450102"], "{link:?}");
        }
        let path = pcap(&folder, DataLink::IEEE802_11, &[(&IP, 3)]);
        let error = format!("{:#}", read(&path, 0, 10).unwrap_err());
        assert!(error.contains("link layer"), "{error}");
    }

    #[test]
    fn what_was_cut_off_is_zeros() {
        let folder = Folder::new();
        let path = pcap(
            &folder,
            DataLink::ETHERNET,
            &[(&[1, 2], 2), (&[3], 4), (&[5], 90), (&[6], 64_000)],
        );
        assert_eq!(read(&path, 1, 1).unwrap(), ["03000000"]);
        let frames = read(&path, 2, 2).unwrap();
        let lens: Vec<_> = frames.iter().map(|digits| digits.len() / 2).collect();
        assert_eq!(lens, [90, FRAME_MAX + 1]);
        let error = format!("{:#}", read(&path, 4, 1).unwrap_err());
        assert!(error.contains("no packets behind the first 4"), "{error}");
        // It breaks off within the last one.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(read(&path, 0, 10).unwrap().len(), 3);
    }

    #[test]
    fn pcapng_has_interfaces() {
        let folder = Folder::new();
        let path = folder.0.join("a.pcapng");
        let mut writer = PcapNgWriter::new(File::create(&path).unwrap()).unwrap();
        for linktype in [DataLink::ETHERNET, DataLink::RAW] {
            let interface = InterfaceDescriptionBlock {
                linktype,
                snaplen: 0,
                options: Vec::new(),
            };
            writer.write_pcapng_block(interface).unwrap();
        }
        let packet = EnhancedPacketBlock {
            interface_id: 1,
            timestamp: Duration::ZERO,
            original_len: 3,
            data: Cow::Borrowed(&IP),
            options: Vec::new(),
        };
        writer.write_pcapng_block(packet).unwrap();
        assert_eq!(
            read(&path, 0, 10).unwrap(),
            ["0200000000020200000000010800450102"]
        );
    }

    #[test]
    fn what_is_no_capture_file_is_refused() {
        let folder = Folder::new();
        let path = folder.0.join("a.txt");
        std::fs::write(&path, "nothing of this is a packet").unwrap();
        for path in [path, folder.0.join("absent")] {
            let error = format!("{:#}", read(&path, 0, 10).unwrap_err());
            assert!(error.contains("homing explain CLIENT SERVICE"), "{error}");
        }
    }
}
