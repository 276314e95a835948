//! Somebody on the wire who records gossip and sends it again, whole, cut, changed,
//! or made up with another key.

use std::{
    fs,
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use homing_agent::pop::{
    Stream,
    keys::Keys,
    seal::{Channel, Identity, Seal, To},
};
use homing_common::host::HostId;
use homing_tests::{
    lab::{
        Lab, Node,
        node::in_namespace,
        plan::{AGENT_PORT, GROUP_PORT},
    },
    random::Random,
    raw::{Raw, index_of},
};

/// Gossip that was heard on the wire: the payloads of UDP datagrams.
#[derive(Clone, Default)]
pub struct Records(Arc<Mutex<Vec<Vec<u8>>>>);

/// Recorded datagrams that are kept at most; later ones take the place of others.
const RECORDS_MAX: usize = 20_000;

impl Records {
    fn add(&self, number: usize, payload: &[u8]) {
        let mut records = self.0.lock().unwrap();
        if records.len() < RECORDS_MAX {
            records.push(payload.to_vec());
        } else {
            records[number % RECORDS_MAX] = payload.to_vec();
        }
    }

    fn any(&self, random: &mut Random) -> Option<Vec<u8>> {
        let records = self.0.lock().unwrap();
        let number = random.below(records.len() as u64) as usize;
        records.get(number).cloned()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Threads that work until they are told to stop.
pub struct Working {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Working {
    /// Ends them and says how much they did.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.count.load(Ordering::Relaxed)
    }
}

/// Records what the hosts' agents send, from here on.
pub fn record(lab: &Lab) -> (Working, Records) {
    let records = Records::default();
    let (stop, count) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut threads = Vec::new();
    for host in 1..=lab.plan().hosts {
        let namespace = lab.namespace(Node::Router);
        let (records, stop, count) = (records.clone(), stop.clone(), count.clone());
        threads.push(thread::spawn(move || {
            in_namespace(&namespace, || {
                let socket = Raw::listener(index_of(&format!("h{host}"))?)?;
                let mut buffer = vec![0; 2048];
                while !stop.load(Ordering::Relaxed) {
                    let frame = socket.receive(&mut buffer, Duration::from_millis(50))?;
                    if let Some(payload) = frame.and_then(gossip) {
                        let number = count.fetch_add(1, Ordering::Relaxed);
                        records.add(number as usize, payload);
                    }
                }
                Ok(())
            })
            .unwrap();
        }));
    }
    let working = Working {
        stop,
        count,
        threads,
    };
    (working, records)
}

/// What is in a frame if it is gossip over IPv4.
fn gossip(frame: &[u8]) -> Option<&[u8]> {
    let port = u16::from_be_bytes(frame.get(36..38)?.try_into().ok()?);
    let is_gossip = frame[12..15] == [0x08, 0x00, 0x45]
        && frame[23] == 17
        && [AGENT_PORT, GROUP_PORT].contains(&port);
    is_gossip.then(|| frame.get(42..)).flatten()
}

/// Forges datagrams to all hosts, so many in a second altogether.
pub fn forge(lab: &Lab, records: Records, per_second: u64, seed: u64) -> Working {
    let namespace = lab.namespace(Node::Router);
    let victims: Vec<Victim> = (1..=lab.plan().hosts)
        .map(|host| Victim::of(lab, host))
        .collect();
    let (stop, count) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let (stopped, counter) = (stop.clone(), count.clone());
    let thread = thread::spawn(move || {
        in_namespace(&namespace, || {
            let socket = Raw::sender()?;
            let mut forger = Forger::new(records, victims, seed);
            let start = Instant::now();
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                while sent < start.elapsed().as_micros() as u64 * per_second / 1_000_000 {
                    let (port, frame) = forger.next();
                    // A frame that the port refuses is one that never was.
                    if socket.send(index_of(&port)?, &frame).is_ok() {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    sent += 1;
                }
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })
        .unwrap();
    });
    Working {
        stop,
        count,
        threads: vec![thread],
    }
}

/// Where forged datagrams go, and whom they pretend to be from.
struct Victim {
    host: u16,
    mac: [u8; 6],
    address: [u8; 4],
}

impl Victim {
    fn of(lab: &Lab, host: u16) -> Self {
        let mac: Vec<u8> = lab
            .plan()
            .host_mac(host)
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        Self {
            host,
            mac: mac.try_into().unwrap(),
            address: lab.plan().host_v4(host).octets(),
        }
    }
}

struct Forger {
    random: Random,
    records: Records,
    victims: Vec<Victim>,
    /// Seals with a key of another POP, in the name of each host.
    impostors: Vec<Seal>,
}

impl Forger {
    fn new(records: Records, victims: Vec<Victim>, seed: u64) -> Self {
        let impostor = |victim: &Victim| {
            let stream = Stream {
                incarnation: u64::MAX / 2,
                generation: 9,
            };
            let identity = Identity {
                host: HostId(victim.host),
                stream,
                address: (IpAddr::from(victim.address), AGENT_PORT).into(),
            };
            Seal::new(Keys::derive(&[0x66; 32]), identity, [1; 32])
        };
        Self {
            random: Random::new(seed),
            impostors: victims.iter().map(impostor).collect(),
            records,
            victims,
        }
    }

    /// The next frame, and the router's port that it goes out by.
    fn next(&mut self) -> (String, Vec<u8>) {
        let count = self.victims.len() as u64;
        let to = self.random.below(count) as usize;
        let from = (to + 1 + self.random.below(count - 1) as usize) % self.victims.len();
        let payload = self.payload(to, from);
        let multicast = self.random.below(4) == 0;
        let (to, from) = (&self.victims[to], &self.victims[from]);
        let frame = frame(to, from, multicast, &payload);
        (format!("h{}", to.host), frame)
    }

    fn payload(&mut self, to: usize, from: usize) -> Vec<u8> {
        let random = &mut self.random;
        let Some(mut payload) = self.records.any(random) else {
            return b"Hm".to_vec();
        };
        let at = random.below(payload.len() as u64) as usize;
        match random.below(8) {
            // As it was.
            0 | 1 => {}
            // Cut, or with something added.
            2 => payload.truncate(at),
            3 => payload.extend_from_slice(&random.next().to_be_bytes()),
            // A bit turned, or a few bytes overwritten.
            4 => payload[at] ^= 1 << random.below(8),
            5 => {
                let end = (at + 8).min(payload.len());
                payload[at..end].copy_from_slice(&random.next().to_be_bytes()[..end - at]);
            }
            // Well made, with another POP's key: an announcement of a session, in the
            // name of another host.
            6 => {
                let mut body = vec![1, 0, 0, 1];
                body.extend_from_slice(&1u64.to_be_bytes());
                body.extend_from_slice(&0u64.to_be_bytes());
                body.extend_from_slice(&random.next().to_be_bytes());
                body.extend_from_slice(&[0, 0]);
                let to = To::Host(HostId(self.victims[to].host));
                return self.impostors[from].seal(Channel::Gossip, to, &body);
            }
            // Anything at all.
            _ => {
                let len = random.below(1400) as usize;
                payload = (0..len).map(|_| random.next() as u8).collect();
                if len > 2 && random.below(2) == 0 {
                    payload[..2].copy_from_slice(b"Hm");
                }
            }
        }
        payload
    }
}

fn frame(to: &Victim, from: &Victim, multicast: bool, payload: &[u8]) -> Vec<u8> {
    const GROUP: [u8; 4] = [239, 77, 77, 77];
    let (mac, address, port) = match multicast {
        true => ([0x01, 0x00, 0x5e, 77, 77, 77], GROUP, GROUP_PORT),
        false => (to.mac, to.address, AGENT_PORT),
    };
    let mut frame = Vec::with_capacity(42 + payload.len());
    frame.extend(mac);
    frame.extend(from.mac);
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend((28 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 1, 17, 0, 0]);
    frame.extend(from.address);
    frame.extend(address);
    let check = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&check.to_be_bytes());
    frame.extend(AGENT_PORT.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((8 + payload.len() as u16).to_be_bytes());
    // No checksum: IPv4 allows that.
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The processor time that a host's agent has used.
pub fn cpu_time(lab: &Lab, host: u16) -> Duration {
    let pid = lab.agent(host).unwrap().pid;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = text.rsplit_once(')').unwrap().1;
    let ticks: u64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    // USER_HZ is 100 on every architecture that this runs on.
    Duration::from_millis(ticks * 10)
}
