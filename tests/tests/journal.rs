//! What a real agent logs when systemd runs it: entries for the journal's own socket, with
//! priority, message and fields. And what it does where there is no journal. Needs root.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::{fs::MetadataExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use homing_tests::sandbox::{Sandbox, eventually, ip, run};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Where the journal listens: in a sandbox, /run is a file system of its own.
const SOCKET: &str = "/run/systemd/journal/socket";

/// How long one line may take to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// The journal's fields of one entry.
type Entry = BTreeMap<String, String>;

/// Listens in the journal's place.
struct Journal(UnixDatagram);

impl Journal {
    fn listen() -> Self {
        fs::create_dir_all(Path::new(SOCKET).parent().expect("a folder")).expect("a folder");
        let socket = UnixDatagram::bind(SOCKET).expect("the journal's socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self(socket)
    }

    fn next(&self) -> Entry {
        let mut buffer = vec![0; 1 << 16];
        let len = self.0.recv(&mut buffer).expect("an entry");
        fields(&buffer[..len])
    }

    /// Skips entries up to the one whose message begins so.
    fn until(&self, begins: &str) -> Entry {
        loop {
            let entry = self.next();
            if entry["MESSAGE"].starts_with(begins) {
                return entry;
            }
        }
    }

    /// What has come and was not read yet.
    fn rest(&self) -> Vec<Entry> {
        self.0.set_nonblocking(true).expect("nonblocking");
        let mut buffer = vec![0; 1 << 16];
        let mut rest = Vec::new();
        while let Ok(len) = self.0.recv(&mut buffer) {
            rest.push(fields(&buffer[..len]));
        }
        rest
    }
}

/// Reads an entry in systemd's "Native Journal Protocol", each field by its length.
fn fields(mut entry: &[u8]) -> Entry {
    let mut fields = Entry::new();
    while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
        let (name, rest) = (&entry[..end], &entry[end + 1..]);
        let (len, rest) = rest.split_at(8);
        let len = u64::from_le_bytes(len.try_into().expect("8 bytes")) as usize;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        fields.insert(text(name), text(&rest[..len]));
        assert_eq!(rest[len], b'\n');
        entry = &rest[len + 1..];
    }
    fields
}

/// The agent of a host with one interface.
struct Agent {
    process: Child,
    stderr: PathBuf,
}

impl Agent {
    /// Starts it; `stream` says from device and inode of its standard error what
    /// `JOURNAL_STREAM` holds.
    fn start(sandbox: &Sandbox, stream: impl FnOnce(u64, u64) -> String) -> Self {
        let stderr = sandbox.files.join("stderr");
        let file = File::create(&stderr).expect("a file");
        let about = file.metadata().expect("its inode");
        let built = std::env::current_exe().expect("this program");
        let built = built.ancestors().nth(2).expect("target/PROFILE");
        let process = Command::new(built.join("homing"))
            .arg("agent")
            .env("HOMING_CONFIG", config(sandbox))
            .env("JOURNAL_STREAM", stream(about.dev(), about.ino()))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("the agent: cargo build -p homing-agent");
        Self { process, stderr }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.stderr).expect("its standard error")
    }

    fn stop(mut self) -> ExitStatus {
        let pid = Pid::from_raw(self.process.id() as i32);
        kill(pid, Signal::SIGTERM).expect("it runs");
        self.process.wait().expect("its end")
    }
}

impl Drop for Agent {
    /// Of a test that has failed. One that has ended takes no notice.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes the host, and says where its configuration is.
fn config(sandbox: &Sandbox) -> PathBuf {
    let key = sandbox.files.join("pop.key");
    fs::write(&key, format!("{}\n", "5a".repeat(32))).expect("a key");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&key, mode).expect("a mode");
    let text = format!(
        r#"
[host]
id = 1
domain = "rack-1"
interfaces = ["eth0"]
cgroup = "{cgroup}"
[pop]
key_file = "{key}"
address = "10.1.0.1:7946"
[tunnel]
network = "10.77.0.0/16"
host_prefix_len = 28
[[services]]
address = "203.0.113.10"
port = 8080
[limits]
owners = 1000
sessions = 1000
"#,
        cgroup = sandbox.cgroup.display(),
        key = key.display(),
    );
    let path = sandbox.files.join("homing.toml");
    fs::write(&path, text).expect("a configuration");
    path
}

fn make_interface() {
    ip("link add eth0 type veth peer name eth1");
    ip("addr add 10.1.0.1/24 dev eth0");
    ip("link set eth0 up");
    ip("link set eth1 up");
    let (bpf, none) = (Some("bpf"), None::<&str>);
    mount(bpf, "/sys/fs/bpf", bpf, MsFlags::empty(), none).expect("a BPF file system");
}

fn homing(args: &[&str]) {
    let built = std::env::current_exe().expect("this program");
    let built = built.ancestors().nth(2).expect("target/PROFILE");
    let done = Command::new(built.join("homing")).args(args).output();
    let done = done.expect("homing");
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn under_systemd_each_event_is_an_entry_of_the_journal() {
    run(|sandbox| {
        make_interface();
        let journal = Journal::listen();
        let agent = Agent::start(sandbox, |device, inode| format!("{device}:{inode}"));

        let ready = journal.until("the agent is ready");
        let wanted = [
            ("PRIORITY", "6"),
            ("SYSLOG_IDENTIFIER", "homing"),
            ("HOMING_TARGET", "homing_agent::daemon"),
            ("HOMING_HOST", "1"),
            ("HOMING_DOMAIN", "rack-1"),
        ];
        for (name, value) in wanted {
            assert_eq!(
                ready.get(name).map(String::as_str),
                Some(value),
                "{ready:?}"
            );
        }
        assert!(ready["MESSAGE"].contains(" domain=rack-1 "), "{ready:?}");

        // Trouble: a priority of its own, and what to do.
        ip("link del eth0");
        let trouble = journal.until("nothing that comes by this interface is forwarded");
        assert_eq!(trouble["PRIORITY"], "3");
        assert_eq!(trouble["HOMING_INTERFACE"], "eth0");
        let fix = &trouble["HOMING_FIX"];
        assert!(fix.starts_with("bring the interface back"), "{fix}");
        assert!(trouble["MESSAGE"].ends_with(&format!(" fix={fix:?}")));

        // The level is that of now, not of the start.
        homing(&["log", "error"]);
        let changed = journal.until("what is logged is changed");
        assert_eq!(changed["HOMING_TO"], "error");
        assert_eq!(agent.text(), "", "nothing goes elsewhere");
        assert!(agent.stop().success());
        for entry in journal.rest() {
            assert!(entry["PRIORITY"].as_str() <= "3", "{entry:?}");
        }
    });
}

#[test]
fn a_journal_that_does_not_listen_is_done_without() {
    run(|sandbox| {
        make_interface();
        let agent = Agent::start(sandbox, |device, inode| format!("{device}:{inode}"));
        eventually("it is ready", || {
            agent.text().contains("the agent is ready")
        });
        let text = agent.text();
        let first = text.lines().next().expect("a line");
        for part in [
            " WARN ",
            "cannot reach the journal's socket",
            SOCKET,
            "fix=\"",
        ] {
            assert!(first.contains(part), "{first}");
        }
        assert!(agent.stop().success());
    });
}

#[test]
fn what_only_inherits_the_variable_of_systemd_logs_to_its_own_standard_error() {
    run(|sandbox| {
        make_interface();
        let journal = Journal::listen();
        let agent = Agent::start(sandbox, |device, inode| format!("{device}:{}", inode + 1));
        eventually("it is ready", || {
            agent.text().contains("the agent is ready")
        });
        assert!(agent.text().lines().all(|line| line.contains(" INFO ")));
        assert_eq!(journal.rest(), []);
        assert!(agent.stop().success());
    });
}
