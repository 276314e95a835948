//! `homing capture`: what the agent captures, written to a file as it comes.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write},
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use pcap_file::{
    PcapError,
    pcapng::{
        Block, PcapNgParser,
        blocks::{
            enhanced_packet::EnhancedPacketOption, interface_statistics::InterfaceStatisticsOption,
        },
    },
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use super::{Failure, args::CaptureArgs, client::Agent};
use crate::admin::{
    api::{self, End},
    pcapng,
};

/// How long the agent may take to end a capture that was interrupted.
const END_WITHIN: Duration = Duration::from_secs(5);
/// How often a terminal is told how it goes, at most.
const TOLD_EVERY: Duration = Duration::from_millis(200);

/// Captures until what was asked for is there, or until it is interrupted.
pub(super) async fn capture(
    agent: &Agent,
    args: &CaptureArgs,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut pieces = agent.pieces(&path(args)).await?;
    // Only now, so that a refusal leaves a file that was there before.
    let mut file;
    let to: &mut dyn Write = match args.file == Path::new("-") {
        true => out,
        false => {
            let name = args.file.display();
            file = File::create(&args.file).with_context(|| format!("cannot write {name}"))?;
            &mut file
        }
    };
    let mut reader = Reader::default();
    let mut told = Told::new();
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece?,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        let Some(piece) = piece else {
            return finish(told, &reader);
        };
        reader.take(&piece)?;
        to.write_all(&piece)?;
        // Whoever reads a pipe is to see packets as they come.
        to.flush()?;
        told.tell(reader.packets);
    }
    let ended: api::CaptureEnded = agent.post("/capture/end").await?;
    if ended.ended {
        let rest = async {
            while let Some(piece) = pieces.next().await? {
                reader.take(&piece)?;
                to.write_all(&piece)?;
            }
            Ok::<_, Failure>(to.flush()?)
        };
        match timeout(END_WITHIN, rest).await {
            Ok(done) => done?,
            Err(_) => {
                let why = format!("the agent has not ended the capture within {END_WITHIN:?}");
                return Err(anyhow::anyhow!("{why}; the file may lack its last packets").into());
            }
        }
    }
    finish(told, &reader)
}

fn finish(told: Told, reader: &Reader) -> Result<(), Failure> {
    told.clear();
    match &reader.sum {
        Some(sum) => {
            // Beside the file, which may be the standard output.
            let _ = writeln!(io::stderr(), "{sum}");
            Ok(())
        }
        None => {
            let why = "the agent has ended the capture early: the file lacks what came after its \
                       last packet; see the agent's log";
            Err(anyhow::anyhow!(why).into())
        }
    }
}

/// What is asked of the agent.
fn path(args: &CaptureArgs) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    if !args.outcome.is_empty() {
        let labels: Vec<_> = args.outcome.iter().map(|outcome| outcome.label()).collect();
        query.append_pair("outcome", &labels.join(","));
    }
    let (mut client, mut service) = (args.client, args.service);
    if let [of_client, of_service] = args.session[..] {
        (client, service) = (Some(End::from(of_client)), Some(End::from(of_service)));
    }
    let mut put = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            query.append_pair(name, &value);
        }
    };
    put("client", client.map(|end| end.to_string()));
    put("service", service.map(|end| end.to_string()));
    put("protocol", args.protocol.clone());
    put("count", args.count.map(|count| count.to_string()));
    put(
        "duration_ms",
        args.duration.map(|time| time.as_millis().to_string()),
    );
    put("snap", Some(args.snap.to_string()));
    format!("/capture?{}", query.finish())
}

/// Reads along: how many packets there are, and what the agent says at the end.
#[derive(Default)]
struct Reader {
    parser: Option<PcapNgParser>,
    unread: Vec<u8>,
    packets: u64,
    sum: Option<String>,
}

impl Reader {
    fn take(&mut self, piece: &[u8]) -> anyhow::Result<()> {
        self.unread.extend_from_slice(piece);
        let mut rest = &self.unread[..];
        let strange = "cannot read the agent's answer; is it of another version?";
        if self.parser.is_none() {
            match PcapNgParser::new(rest) {
                Ok((left, parser)) => (rest, self.parser) = (left, Some(parser)),
                Err(PcapError::IncompleteBuffer) => return Ok(()),
                Err(error) => return Err(error).context(strange),
            }
        }
        while let Some(parser) = &mut self.parser {
            match parser.next_block(rest) {
                Ok((left, block)) => {
                    match block {
                        Block::EnhancedPacket(packet) => {
                            let came = packet.options.iter().any(|option| {
                                matches!(option, EnhancedPacketOption::Comment(text)
                                    if text.contains(pcapng::CAME))
                            });
                            self.packets += u64::from(came);
                        }
                        Block::InterfaceStatistics(sum) => {
                            self.sum = sum.options.into_iter().find_map(|option| match option {
                                InterfaceStatisticsOption::Comment(text) => Some(text.into_owned()),
                                _ => None,
                            });
                        }
                        _ => {}
                    }
                    rest = left;
                }
                Err(PcapError::IncompleteBuffer) => break,
                Err(error) => return Err(error).context(strange),
            }
        }
        self.unread = rest.to_vec();
        Ok(())
    }
}

/// How it goes, for a person at a terminal.
struct Told {
    terminal: bool,
    last: Option<std::time::Instant>,
}

impl Told {
    fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            last: None,
        }
    }

    fn tell(&mut self, packets: u64) {
        let soon = self.last.is_some_and(|last| last.elapsed() < TOLD_EVERY);
        if self.terminal && !soon {
            self.last = Some(std::time::Instant::now());
            // Nobody is left to tell if this fails.
            let _ = write!(io::stderr(), "\r{packets} packets; Ctrl-C ends");
        }
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
