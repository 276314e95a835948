//! A large download from a real web server by a real client, across reshuffles.

use std::{
    fs::{self, File},
    io::{BufWriter, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{
    lab::{Lab, Node, plan::SERVICE_V4, plan::SERVICE_V6, wait_until},
    random::{Random, stream},
};

/// The port that nginx serves on.
const PORT: u16 = 80;
/// How long nginx makes a download last, in seconds: time for several reshuffles, however
/// busy the machine is, before all of it is on its way.
const LASTS: u64 = 6;
/// How long downloads may take to get from one reshuffle to the next.
const PATIENCE: Duration = Duration::from_secs(60);

/// One download.
#[derive(Clone, Debug, Serialize)]
pub struct Download {
    /// Where from.
    pub url: String,
    /// Bytes that arrived.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Whether the hash of what arrived is that of the file.
    pub sha256_ok: bool,
    /// curl's exit code.
    pub curl: i32,
    /// How often the ECMP set changed meanwhile.
    pub reshuffles: u32,
}

/// An nginx on each host, all serving the same file.
pub struct Web {
    folder: PathBuf,
    servers: Vec<Child>,
    bytes: u64,
    sha256: [u8; 32],
}

impl Web {
    /// Makes the file and starts the servers.
    pub fn start(lab: &Lab, mib: u64) -> Result<Self> {
        let www = lab.folder().join("www");
        fs::create_dir_all(&www)?;
        let sha256 = make_file(&www.join("large"), mib)?;
        let mut web = Self {
            folder: www.clone(),
            servers: Vec::new(),
            bytes: mib << 20,
            sha256,
        };
        for host in 1..=lab.plan().hosts {
            let folder = lab.folder_of(Node::Host(host)).join("nginx");
            fs::create_dir_all(&folder)?;
            fs::write(
                folder.join("nginx.conf"),
                config(&www.to_string_lossy(), mib),
            )?;
            let log = File::create(folder.join("start.log"))?;
            let mut command = Command::new("nginx");
            command
                .args([
                    "-p",
                    &folder.to_string_lossy(),
                    "-c",
                    "nginx.conf",
                    "-e",
                    "error.log",
                ])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log);
            let server = lab
                .spawn(Node::Host(host), &mut command)
                .context("`cargo xtask setup` installs nginx")?;
            web.servers.push(server);
            // It is up once its pid file is there.
            let up = wait_until(Duration::from_secs(10), || {
                Ok(folder.join("nginx.pid").exists())
            })?;
            ensure!(
                up,
                "nginx on h{host} did not start; see {}",
                folder.display()
            );
        }
        Ok(web)
    }

    /// Downloads the file over IPv4 and IPv6 at once while the ECMP set changes
    /// `reshuffles` times at most: whenever the next share of both has arrived.
    pub fn download(
        &self,
        lab: &mut Lab,
        random: &mut Random,
        reshuffles: u32,
        say: &impl Fn(String),
    ) -> Result<Vec<Download>> {
        let urls = [
            format!("http://{SERVICE_V4}:{PORT}/large"),
            format!("http://[{SERVICE_V6}]:{PORT}/large"),
        ];
        say(format!(
            "two downloads by curl from nginx, over IPv4 and IPv6, with {reshuffles} reshuffles"
        ));
        let mut transfers = Vec::new();
        for url in urls {
            let mut command = Command::new("curl");
            command
                .args([
                    "--silent",
                    "--show-error",
                    "--max-time",
                    "120",
                    "--output",
                    "-",
                    &url,
                ])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
            let child = lab
                .spawn(Node::Client(1), &mut command)
                .context("`cargo xtask setup` installs curl")?;
            let (wanted, arrived) = (self.sha256, Arc::new(AtomicU64::new(0)));
            let counter = arrived.clone();
            let thread = std::thread::spawn(move || receive(child, url, &wanted, &counter));
            transfers.push((thread, arrived));
        }
        let mut done = 0;
        while done < reshuffles {
            let share = self.bytes * u64::from(done + 1) / u64::from(reshuffles + 1);
            let mut over = false;
            wait_until(PATIENCE, || {
                over = transfers.iter().all(|(thread, _)| thread.is_finished());
                let mut going = transfers.iter().filter(|(thread, _)| !thread.is_finished());
                Ok(over || going.all(|(_, arrived)| arrived.load(Relaxed) >= share))
            })?;
            if over {
                break;
            }
            // A transfer is one flow, which a lesser reshuffle might spare.
            lab.reshuffle_all(random)?;
            done += 1;
        }
        let mut downloads = Vec::new();
        for (thread, _) in transfers {
            let mut download = thread
                .join()
                .map_err(|_| anyhow::anyhow!("a download panicked"))??;
            download.reshuffles = done;
            say(format!(
                "{}: {:.0} MiB in {:.1} s across {done} reshuffles, {}",
                download.url,
                download.bytes as f64 / (1 << 20) as f64,
                download.seconds,
                match (download.sha256_ok, download.curl) {
                    (true, _) => "SHA-256 right".to_owned(),
                    (false, 0) => "SHA-256 WRONG".to_owned(),
                    (false, code) => format!("broken (curl: exit code {code})"),
                }
            ));
            downloads.push(download);
        }
        Ok(downloads)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        // One process each, without a master: nothing is left behind.
        for server in &mut self.servers {
            server.kill().ok();
            server.wait().ok();
        }
        // The file is large, and of no use to anybody who looks for logs.
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Reads what curl prints to the end; `arrived` counts the bytes meanwhile.
fn receive(
    mut curl: Child,
    url: String,
    wanted: &[u8; 32],
    arrived: &AtomicU64,
) -> Result<Download> {
    let started = Instant::now();
    let mut stdout = curl.stdout.take().context("no output")?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
    loop {
        match stdout.read(&mut buffer)? {
            0 => break,
            len => {
                hash.update(&buffer[..len]);
                bytes += len as u64;
                arrived.store(bytes, Relaxed);
            }
        }
    }
    let status = curl.wait()?;
    Ok(Download {
        url,
        bytes,
        seconds: (started.elapsed().as_secs_f64() * 100.0).round() / 100.0,
        sha256_ok: status.success() && hash.finalize().as_slice() == wanted,
        curl: status.code().unwrap_or(-1),
        reshuffles: 0,
    })
}

/// Writes a file of pseudo-random bytes and returns its hash.
fn make_file(path: &Path, mib: u64) -> Result<[u8; 32]> {
    let mut file = BufWriter::new(
        File::create(path).with_context(|| format!("cannot make {}", path.display()))?,
    );
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    for number in 0..mib {
        stream(1, number << 20, &mut block);
        hash.update(&block);
        file.write_all(&block)?;
    }
    file.flush()?;
    Ok(hash.finalize().into())
}

fn config(www: &str, mib: u64) -> String {
    let rate = mib.div_ceil(LASTS);
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path tmp_{kind};\n"))
        .collect();
    format!(
        "user root;
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 1024; }}
http {{
{temporary}    access_log off;
    sendfile on;
    server {{
        listen {SERVICE_V4}:{PORT};
        listen [{SERVICE_V6}]:{PORT};
        root {www};
        limit_rate {rate}m;
    }}
}}
"
    )
}
