//! TLS servers whose connections can move (`client/examples/tls`), and their clients.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::transfers::{Content, Transfer};
use crate::lab::{
    Lab, Node, plan::SERVICE_PORTS, plan::SERVICE_V4, plan::SERVICE_V6, program, wait_until,
};

/// The port of HTTPS.
const PORT: u16 = SERVICE_PORTS[1];
/// What the server's `/bytes` are made with (`http.rs` of the example).
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
/// A download's length, and how much of it comes in a second.
const LEN: u64 = 400_000;
const RATE: u64 = 50_000;

/// The certificate of the POP's servers, which is the one that clients trust, and its key.
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
}

impl Identity {
    /// Makes it, by openssl.
    pub fn make(lab: &Lab) -> Result<Self> {
        let identity = Self {
            certificate: lab.folder().join("tls.pem"),
            key: lab.folder().join("tls.key"),
        };
        let names = format!("subjectAltName=IP:{SERVICE_V4},IP:{SERVICE_V6}");
        let output = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
            ])
            .args([
                "-nodes", "-days", "30", "-subj", "/CN=demo", "-addext", &names,
            ])
            .arg("-out")
            .arg(&identity.certificate)
            .arg("-keyout")
            .arg(&identity.key)
            .output()
            .context("`cargo xtask setup` installs openssl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "openssl made no certificate: {said}"
        );
        Ok(identity)
    }

    /// A download over TLS: by curl and by openssl in turn, over IPv4 and IPv6, over TLS
    /// 1.3 and 1.2.
    pub fn transfer(&self, number: u32) -> Transfer {
        let certificate = self.certificate.to_string_lossy();
        let host = match number % 2 {
            0 => format!("{SERVICE_V4}"),
            _ => format!("[{SERVICE_V6}]"),
        };
        let mut transfer = if number % 4 < 2 {
            let mut curl = Transfer::of("curl");
            let url = format!("https://{host}:{PORT}/bytes/{LEN}/{RATE}");
            curl.arguments(&["--silent", "--show-error", "--fail", "--max-time", "120"]);
            curl.arguments(&["--cacert", &certificate, &url, &url]);
            curl
        } else {
            let mut openssl = Transfer::of("openssl");
            let to = format!("{host}:{PORT}");
            let version = if number % 8 < 4 { "-tls1_3" } else { "-tls1_2" };
            // It ends when its input does.
            openssl.arguments(&["s_client", "-quiet", "-no_ign_eof", "-verify_quiet"]);
            openssl.arguments(&["-verify_return_error", version, "-CAfile", &certificate]);
            openssl.arguments(&["-connect", &to]);
            let request = format!("GET /bytes/{LEN}/{RATE} HTTP/1.1\r\nHost: demo\r\n\r\n");
            openssl.say(&request.repeat(2));
            openssl
        };
        for _ in 0..2 {
            transfer.expect(Content::Product(FACTOR), LEN);
        }
        transfer
    }
}

/// A host's TLS servers: one for each service address.
pub struct TlsServers {
    host: u16,
    children: Vec<Child>,
}

impl TlsServers {
    /// Starts them. Their log is `tls.log` in the host's folder.
    pub fn start(lab: &Lab, host: u16, identity: &Identity) -> Result<Self> {
        let mut servers = Self {
            host,
            children: Vec::new(),
        };
        let folder = lab.folder_of(Node::Host(host));
        for address in lab.plan().service(PORT) {
            let log = File::options()
                .create(true)
                .append(true)
                .open(folder.join("tls.log"))?;
            let mut command = Command::new(program("homing-tls")?);
            command
                .arg(lab.sockets(host).apps)
                .args([address.to_string(), format!("h{host}")])
                .args([&identity.certificate, &identity.key])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log);
            servers
                .children
                .push(lab.spawn(Node::Host(host), &mut command)?);
        }
        Ok(servers)
    }

    /// Waits until the host's agent has registered them. They listen before that.
    pub fn wait_registered(&self, lab: &Lab, timeout: Duration) -> Result<()> {
        let done = wait_until(timeout, || {
            let apps = lab.homing_json(self.host, &["apps"])?;
            let all = apps["apps"]
                .as_array()
                .context("`homing apps` names none")?;
            let ours = all
                .iter()
                .filter(|app| app["name"] == "https-bytes" && app["ready"] == true);
            Ok(ours.count() >= self.children.len())
        })?;
        ensure!(
            done,
            "the TLS servers on h{} were not registered; see its tls.log",
            self.host
        );
        Ok(())
    }
}

impl Drop for TlsServers {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
