//! `homing capture`: what the agent captures, written to a file as it comes.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write},
    os::fd::AsFd as _,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use hyper::body::Bytes;
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
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{Failure, args::CaptureArgs, client::Agent, watch::Stop};
use crate::admin::{
    api::{self, End},
    pcapng,
};

/// Pieces that may wait to be written, of some 64 KiB each.
const PIECES_WAITING: usize = 16;
/// How long the agent may take to end a capture that was interrupted.
const END_WITHIN: Duration = Duration::from_secs(5);
/// How often a terminal is told how it goes, at most.
const TOLD_EVERY: Duration = Duration::from_millis(200);

/// Captures until what was asked for is there, or until it is interrupted.
pub(super) async fn capture(agent: &Agent, args: &CaptureArgs) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    let mut pieces = agent.pieces(&path(args)).await?;
    // Only now, so that a refusal leaves a file that was there before.
    let file = Writer::new(open(&args.file)?);
    let (mut reader, mut told) = (Reader::default(), Told::new());
    let held = loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece?,
            () = stop.wait() => break None,
        };
        let Some(piece) = piece else {
            file.end().await?;
            return finish(told, &reader);
        };
        reader.take(&piece)?;
        told.tell(reader.packets);
        tokio::select! {
            room = file.room() => match room {
                true => file.write(piece).await,
                // It cannot be written any more.
                false => return Ok(file.end().await?),
            },
            () = stop.wait() => break Some(piece),
        }
    };
    let number = pieces.number();
    let end = format!("/capture/end?number={}", number.unwrap_or_default());
    let _: api::CaptureEnded = agent.post(&end).await?;
    let rest = async {
        if let Some(piece) = held {
            file.write(piece).await;
        }
        while let Some(piece) = pieces.next().await? {
            reader.take(&piece)?;
            file.write(piece).await;
        }
        Ok::<_, Failure>(file.end().await?)
    };
    match timeout(END_WITHIN, rest).await {
        Ok(done) => done?,
        Err(_) => {
            let why = format!(
                "what was captured last is not written: either the agent or the output has taken \
                 longer than {END_WITHIN:?}"
            );
            return Err(anyhow!(why).into());
        }
    }
    finish(told, &reader)
}

fn open(path: &Path) -> Result<File, Failure> {
    if path == Path::new("-") {
        return Ok(io::stdout().as_fd().try_clone_to_owned()?.into());
    }
    let file = File::create(path);
    Ok(file.with_context(|| format!("cannot write {}", path.display()))?)
}

/// Writes on a thread of its own: a pipe that nobody reads holds up no signal.
struct Writer {
    to: mpsc::Sender<Bytes>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Writer {
    fn new(mut file: File) -> Self {
        let (to, mut pieces) = mpsc::channel::<Bytes>(PIECES_WAITING);
        let (tell, done) = oneshot::channel();
        thread::spawn(move || {
            let mut write = || {
                while let Some(piece) = pieces.blocking_recv() {
                    file.write_all(&piece)?;
                }
                file.flush()
            };
            let written = write();
            // Nobody waits for it who has given up.
            let _ = tell.send(written);
        });
        Self { to, done }
    }

    /// Waits until there is room for a piece; false: nothing can be written any more.
    async fn room(&self) -> bool {
        self.to.reserve().await.is_ok()
    }

    async fn write(&self, piece: Bytes) {
        // Why it cannot, the end tells.
        let _ = self.to.send(piece).await;
    }

    /// Waits until all is written.
    async fn end(self) -> io::Result<()> {
        drop(self.to);
        self.done.await.unwrap_or(Ok(()))
    }
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
            Err(anyhow!(why).into())
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
