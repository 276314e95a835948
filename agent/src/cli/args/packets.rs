//! `homing explain` and `homing capture`.

use std::{net::SocketAddr, num::NonZeroU64, path::PathBuf, time::Duration};

use clap::Args;
use homing_common::{capture::SNAP_MAX, host::HostId, outcome::Outcome};

use super::{duration, endpoint};
use crate::{admin::api, packet::Kind};

pub(super) const EXPLAIN: &str = "\
Say what becomes of a packet on this host, and why.

The packet is tried: the kernel runs the very program that is in force on it, with the same \
maps, and copies of those that the program writes to. So the answer is the fast path's own, \
and nothing comes of it: the packet is not counted, not sent, not held, and nobody is asked \
about it.

  homing explain CLIENT SERVICE   a packet of that session: a TCP segment with ACK, or \
what --as says
  homing explain FILE             the packets of a capture file (pcap or pcapng), one after the \
other, as if each came by --interface

Of each packet it tells the outcome (as `homing stats` counts them), what that means and what \
to do about it, what this host knows of the session, and what the packet is as it goes, where \
the program changed it. Of a file it prints a line for each packet and then each outcome once; \
what was cut short by who captured it is made as long as it was. Addresses of the link layer \
do not matter.

What the packet ends in holds for this moment: a session that nobody here knows is `asked` \
about, and what follows depends on the answer.

Exits with 0 if all packets could be tried, else with 1.";

pub(super) const CAPTURE: &str = "\
Write packets that come to this host to a file (pcapng), with what became of each.

Each packet is there as it came, with its outcome as comment; and, where the program changed \
it or sent it elsewhere, right behind as it went; the comments of both have the same number. \
`frame.comment contains \"forwarded\"` is a display filter of Wireshark and tshark. Times are \
those of arrival.

Without options everything that reaches host.interfaces is captured, until it is interrupted. \
Packets of a session are those whose own headers name it, off the wire or through the tunnel, \
ICMP errors about it, and all fragments between its addresses. What the agent held for a \
moment appears twice: as it came, and when it was given back.

While packets are captured another program has the place of the usual one. It decides by the \
same code, and copies at most --snap bytes of each frame, of at most some 30,000 packets a \
second. What is wanted beyond that, or is not written fast enough, is not captured: it is \
counted, and told at the end and in the file. While nobody captures, nothing of this is in \
force. One may capture at a time.

Exits with 0 also when it was interrupted.

Examples:
  homing capture -w all.pcapng --count 1000
  homing capture -w lost.pcapng --outcome no_way --outcome too_big
  homing capture -w - --session 198.51.100.7:40312 203.0.113.10:443 | tshark -r -";

#[derive(Debug, Args)]
pub(in crate::cli) struct ExplainArgs {
    /// The client's address and port, such as 198.51.100.7:40312; or a capture file
    #[arg(value_name = "CLIENT|FILE")]
    pub what: String,

    /// The service's address and port, such as 203.0.113.10:443 or [2001:db8:113::10]:443
    #[arg(value_parser = endpoint)]
    pub service: Option<SocketAddr>,

    /// What the packet is
    #[arg(
        long = "as",
        value_name = "KIND",
        value_enum,
        default_value_t = Kind::Ack,
        requires = "service"
    )]
    pub kind: Kind,

    /// The packet comes through the tunnel, from this host
    #[arg(long, value_name = "HOST", value_parser = host, requires = "service")]
    pub from: Option<HostId>,

    /// The interface that packets come by [default: the first of host.interfaces]
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,

    /// Leave out so many packets of the file
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        conflicts_with = "service"
    )]
    pub skip: u64,

    /// Explain at most so many
    #[arg(
        long,
        value_name = "N",
        default_value_t = api::EXPLAIN_MAX as u16,
        value_parser = clap::value_parser!(u16).range(1..=api::EXPLAIN_MAX as i64),
        conflicts_with = "service"
    )]
    pub count: u16,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct CaptureArgs {
    /// The file that is written; `-`: the standard output
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    pub file: PathBuf,

    /// Only packets with this outcome; may be given several times
    #[arg(long, value_name = "NAME", value_parser = outcome)]
    pub outcome: Vec<Outcome>,

    /// Only packets of this session
    #[arg(
        long,
        num_args = 2,
        value_names = ["CLIENT", "SERVICE"],
        value_parser = endpoint,
        conflicts_with_all = ["client", "service"]
    )]
    pub session: Vec<SocketAddr>,

    /// Only packets of this client: an address, or address and port
    #[arg(long, value_name = "ADDRESS", value_parser = end)]
    pub client: Option<api::End>,

    /// Only packets of this service: an address, or address and port
    #[arg(long, value_name = "ADDRESS", value_parser = end)]
    pub service: Option<api::End>,

    /// Only packets of this protocol
    #[arg(long, value_parser = ["tcp", "udp"])]
    pub protocol: Option<String>,

    /// End after so many packets
    #[arg(long, value_name = "N")]
    pub count: Option<NonZeroU64>,

    /// End after this time, such as 10s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,

    /// Bytes of each frame at most
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = SNAP_MAX as u32,
        value_parser = clap::value_parser!(u32).range(1..=SNAP_MAX as i64)
    )]
    pub snap: u32,
}

fn host(text: &str) -> Result<HostId, String> {
    let number: u16 = text.parse().map_err(|_| "not a host id".to_owned())?;
    HostId::try_from(number).map_err(|error| error.to_string())
}

fn end(text: &str) -> Result<api::End, String> {
    text.parse()
}

fn outcome(text: &str) -> Result<Outcome, String> {
    let named = Outcome::ALL.iter().find(|outcome| outcome.label() == text);
    named.copied().ok_or_else(|| {
        let labels = Outcome::ALL.iter().map(|outcome| outcome.label());
        let near = labels
            .clone()
            .filter(|label| strsim::jaro(label, text) > 0.8);
        let near: Vec<_> = near.collect();
        match near.is_empty() {
            true => format!(
                "there is no such outcome; there are {}",
                labels.collect::<Vec<_>>().join(" ")
            ),
            false => format!(
                "there is no such outcome; did you mean {}?",
                near.join(" or ")
            ),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_have_the_names_of_their_counters() {
        assert_eq!(outcome("no_way"), Ok(Outcome::NoWay));
        let why = outcome("forwardd").unwrap_err();
        assert!(why.contains("did you mean forwarded"), "{why}");
        let why = outcome("x").unwrap_err();
        assert!(why.contains("not_ip not_service"), "{why}");
    }
}
