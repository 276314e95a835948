//! Downloads by other people's programs, each again and again until it is told to stop.

use std::{
    io::Read as _,
    io::Write as _,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::Downloads;
use crate::{
    lab::{Lab, Node, wait_until},
    random::stream,
};

/// curl's exit code for "failure in receiving network data", which a reset is.
const CURL_RECEIVE: i32 = 56;
/// How often what a program prints is read that is read slowly.
const READS_A_SECOND: u64 = 20;
/// How many reasons a report names.
const REASONS: usize = 5;
/// The longest head of an answer of HTTP.
const HEAD_MAX: usize = 16 * 1024;

/// The bytes of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Those of [`stream`] with this seed.
    Stream(u64),
    /// Those of the TLS server: the highest byte of the offset times this.
    Product(u64),
}

impl Content {
    fn fill(self, offset: u64, out: &mut [u8]) {
        match self {
            Self::Stream(seed) => stream(seed, offset, out),
            Self::Product(factor) => {
                for (at, byte) in (offset..).zip(out) {
                    *byte = (at.wrapping_mul(factor) >> 56) as u8;
                }
            }
        }
    }
}

/// A program that downloads, and what it should print.
#[derive(Clone, Debug)]
pub struct Transfer {
    program: &'static str,
    arguments: Vec<String>,
    /// What is written to its standard input.
    input: String,
    /// It prints the heads of answers, too.
    heads: bool,
    /// How many bytes of what it prints are read in a second; all if 0.
    rate: u64,
    files: Vec<(Content, u64)>,
}

impl Transfer {
    /// One by this program.
    pub fn of(program: &'static str) -> Self {
        Self {
            program,
            arguments: Vec::new(),
            input: String::new(),
            heads: false,
            rate: 0,
            files: Vec::new(),
        }
    }

    /// Gives the program more arguments.
    pub fn arguments(&mut self, more: &[&str]) {
        self.arguments
            .extend(more.iter().map(|one| (*one).to_owned()));
    }

    /// Writes to the program what it sends as it is; so it prints answers as they are.
    pub fn say(&mut self, text: &str) {
        self.input.push_str(text);
        self.heads = true;
    }

    /// Reads no more than so many bytes in a second of what it prints.
    pub fn read_slowly(&mut self, rate: u64) {
        self.rate = rate;
    }

    /// It should print so many bytes of this next.
    pub fn expect(&mut self, content: Content, len: u64) {
        self.files.push((content, len));
    }

    /// Checks what the program prints, to its end. Its input ends once all has come.
    fn check(
        &self,
        child: &mut Child,
        input: Option<ChildStdin>,
        slot: &Slot,
    ) -> Result<(), String> {
        let mut from = child.stdout.take().ok_or("no output")?;
        let most = match self.rate {
            0 => 64 * 1024,
            rate => (rate / READS_A_SECOND).max(1) as usize,
        };
        let mut buffer = vec![0; most];
        let mut came = Vec::new();
        for (content, len) in &self.files {
            if self.heads {
                skip_head(&mut from, &mut came)?;
            }
            let mut offset = 0;
            while offset < *len {
                if came.is_empty() {
                    if self.rate > 0 {
                        std::thread::sleep(Duration::from_secs(1) / READS_A_SECOND as u32);
                    }
                    let read = from.read(&mut buffer).map_err(|e| e.to_string())?;
                    if read == 0 {
                        return Err(format!("it ended after {offset} of {len} bytes"));
                    }
                    came.extend_from_slice(&buffer[..read]);
                }
                let now = came.len().min((len - offset) as usize);
                let mut wanted = vec![0; now];
                content.fill(offset, &mut wanted);
                if came[..now] != wanted {
                    return Err(format!("wrong bytes within {now} from {offset}"));
                }
                came.drain(..now);
                offset += now as u64;
                slot.bytes.fetch_add(now as u64, Relaxed);
            }
        }
        drop(input);
        from.read_to_end(&mut came).map_err(|e| e.to_string())?;
        match came.len() {
            0 => Ok(()),
            more => Err(format!("{more} bytes too many")),
        }
    }
}

fn skip_head(from: &mut impl std::io::Read, came: &mut Vec<u8>) -> Result<(), String> {
    loop {
        if let Some(end) = came.windows(4).position(|four| four == b"\r\n\r\n") {
            came.drain(..end + 4);
            return Ok(());
        }
        let mut some = [0; 512];
        match from.read(&mut some).map_err(|error| error.to_string())? {
            0 => return Err("it ended before an answer".to_owned()),
            _ if came.len() > HEAD_MAX => return Err("an answer without end".to_owned()),
            len => came.extend_from_slice(&some[..len]),
        }
    }
}

/// Several of them, each on a thread.
pub struct Transfers {
    stop: Arc<AtomicBool>,
    slots: Vec<Arc<Slot>>,
    threads: Vec<JoinHandle<()>>,
}

/// One of them.
#[derive(Debug, Default)]
struct Slot {
    /// Bytes that were right.
    bytes: AtomicU64,
    opened: AtomicU64,
    broken: AtomicU64,
    resets: AtomicU64,
    reasons: Mutex<Vec<String>>,
}

impl Transfers {
    /// Starts them on a machine of the lab.
    pub fn start(lab: &Lab, machine: Node, transfers: Vec<Transfer>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut slots, mut threads) = (Vec::new(), Vec::new());
        for transfer in transfers {
            let slot = Arc::new(Slot::default());
            slots.push(slot.clone());
            let mut command = Command::new(transfer.program);
            command
                .args(&transfer.arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            lab.place(machine, &mut command)?;
            let stop = stop.clone();
            threads.push(std::thread::spawn(move || {
                while !stop.load(Relaxed) {
                    slot.one(&transfer, &mut command);
                }
            }));
        }
        Ok(Self {
            stop,
            slots,
            threads,
        })
    }

    /// How many there are at a time.
    pub fn total(&self) -> u64 {
        self.slots.len() as u64
    }

    /// How many there were.
    pub fn opened(&self) -> u64 {
        self.sum(|slot| &slot.opened)
    }

    /// How many of them are such that none has broken yet.
    pub fn live(&self) -> u64 {
        let whole = |slot: &&Arc<Slot>| slot.broken.load(Relaxed) == 0;
        self.slots.iter().filter(whole).count() as u64
    }

    /// Waits until more has come of each that is unbroken.
    pub fn wait_more(&self, timeout: Duration) -> Result<()> {
        let now = |slot: &Slot| slot.bytes.load(Relaxed);
        let before: Vec<u64> = self.slots.iter().map(|slot| now(slot)).collect();
        let done = wait_until(timeout, || {
            let mut pairs = self.slots.iter().zip(&before);
            Ok(pairs.all(|(slot, before)| now(slot) > *before || slot.broken.load(Relaxed) > 0))
        })?;
        ensure!(
            done,
            "some downloads neither went on nor broke within {timeout:?}"
        );
        Ok(())
    }

    /// Lets each end with the download that it is in.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// What became of them.
    pub fn finish(mut self) -> Result<Downloads> {
        self.stop();
        for thread in self.threads.drain(..) {
            let joined = thread.join();
            joined.ok().context("a download's thread panicked")?;
        }
        let all = self.slots.iter().flat_map(|slot| {
            let reasons = slot.reasons.lock().unwrap_or_else(PoisonError::into_inner);
            reasons.clone()
        });
        Ok(Downloads {
            connections: self.total(),
            opened: self.opened(),
            broken: self.sum(|slot| &slot.broken),
            resets: self.sum(|slot| &slot.resets),
            bytes: self.sum(|slot| &slot.bytes),
            reasons: all.take(REASONS).collect(),
        })
    }

    fn sum(&self, field: fn(&Slot) -> &AtomicU64) -> u64 {
        self.slots
            .iter()
            .map(|slot| field(slot).load(Relaxed))
            .sum()
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        // The programs end with the lab.
        self.stop();
    }
}

impl Slot {
    /// Downloads once.
    fn one(&self, transfer: &Transfer, command: &mut Command) {
        self.opened.fetch_add(1, Relaxed);
        let Err((why, reset)) = self.attempt(transfer, command) else {
            return;
        };
        self.broken.fetch_add(1, Relaxed);
        self.resets.fetch_add(u64::from(reset), Relaxed);
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.len() < REASONS {
            reasons.push(format!("{}: {why}", transfer.program));
        }
        // What breaks at once is not to be tried all the time.
        std::thread::sleep(Duration::from_millis(200));
    }

    /// Why it failed, and whether with a reset.
    fn attempt(&self, transfer: &Transfer, command: &mut Command) -> Result<(), (String, bool)> {
        let plain = |why: String| (why, false);
        let mut child = command.spawn().map_err(|error| plain(error.to_string()))?;
        let mut input = child.stdin.take();
        if let Some(input) = &mut input {
            let written = input.write_all(transfer.input.as_bytes());
            written.map_err(|error| plain(error.to_string()))?;
        }
        let checked = transfer.check(&mut child, input, self);
        if checked.is_err() {
            // It may go on with bytes that nobody wants.
            child.kill().ok();
        }
        let output = child
            .wait_with_output()
            .map_err(|error| plain(error.to_string()))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let reset = output.status.code() == Some(CURL_RECEIVE) || said.contains("reset by peer");
        match checked {
            Err(why) => Err((format!("{why}; {said}"), reset)),
            Ok(()) if !output.status.success() => {
                Err((format!("{}: {said}", output.status), reset))
            }
            Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(program: &str, heads: bool, files: Vec<(Content, u64)>) -> Result<(), (String, bool)> {
        let transfer = Transfer {
            heads,
            files,
            ..Transfer::of("sh")
        };
        let mut command = Command::new("sh");
        command
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Slot::default().attempt(&transfer, &mut command)
    }

    #[test]
    fn what_is_printed_must_be_right_to_the_last_byte() {
        // The highest byte of 2^56 * i is i.
        let files = vec![(Content::Product(1 << 56), 3)];
        let right = r"printf '\000\001\002'";
        assert_eq!(told(right, false, files.clone()), Ok(()));
        let head = r"printf 'HTTP/1.1 200 OK\r\n\r\n'; ";
        assert_eq!(told(&format!("{head}{right}"), true, files.clone()), Ok(()));
        let broken = |program: &str| told(program, false, files.clone()).unwrap_err();
        assert!(broken(r"printf '\000\001\003'").0.contains("wrong bytes"));
        assert!(broken(r"printf '\000\001'").0.contains("after 2 of 3"));
        assert!(broken(r"printf '\000\001\002\003'").0.contains("too many"));
        let (why, reset) = broken(&format!("{right}; echo gone >&2; exit 56"));
        assert!(why.contains("gone") && reset, "{why}");
        let (_, reset) = broken(&format!("{right}; exit 7"));
        assert!(!reset);
    }
}
