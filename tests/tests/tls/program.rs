//! Programs of clients.

use std::{
    fs,
    io::{Read, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use homing_tests::sandbox::eventually;

/// A program that runs, with all that it has printed so far. It ends with this.
pub struct Program {
    child: Child,
    printed: Arc<Mutex<Vec<u8>>>,
}

impl Program {
    /// `spawn` starts it where it is to run.
    pub fn start(command: &mut Command, spawn: impl FnOnce(&mut Command) -> Child) -> Self {
        let (program, stdout) = Self::start_unread(command, spawn);
        collect(stdout, &program.printed);
        program
    }

    /// The same with its output left to the test: the program waits for who reads it.
    pub fn start_unread(
        command: &mut Command,
        spawn: impl FnOnce(&mut Command) -> Child,
    ) -> (Self, ChildStdout) {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = spawn(command);
        let printed = Arc::default();
        collect(child.stderr.take().expect("piped"), &printed);
        let stdout = child.stdout.take().expect("piped");
        (Self { child, printed }, stdout)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn printed(&self) -> String {
        let printed = self.printed.lock().expect("whole");
        String::from_utf8_lossy(&printed).into_owned()
    }

    /// Waits until it has printed something so many times.
    pub fn prints(&self, text: &str, times: usize) {
        eventually(&format!("{text:?}, {times} times"), || {
            self.printed().matches(text).count() >= times
        });
    }

    pub fn types(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        stdin.write_all(text.as_bytes()).expect("it reads");
        stdin.flush().expect("it reads");
    }

    /// Waits until it has ended, and insists that it ended well.
    pub fn ends_well(mut self) {
        let status = self.child.wait().expect("waited for");
        assert!(status.success(), "{status}: {}", self.printed());
    }

    /// Whether it has something, anywhere in its memory.
    pub fn remembers(&self, secret: &[u8]) -> bool {
        let folder = Path::new("/proc").join(self.pid().to_string());
        let maps = fs::read_to_string(folder.join("maps")).expect("it runs");
        let memory = fs::File::open(folder.join("mem")).expect("readable by root");
        maps.lines().any(|line| {
            let mut words = line.split(' ');
            let (range, rights) = (words.next().expect("a range"), words.next());
            if !rights.is_some_and(|rights| rights.starts_with("rw")) {
                return false;
            }
            let (start, end) = range.split_once('-').expect("a range");
            let [start, end] =
                [start, end].map(|address| u64::from_str_radix(address, 16).expect("an address"));
            let mut bytes = vec![0; (end - start) as usize];
            // Some of it may not be there.
            let read = std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, start);
            read.is_ok() && bytes.windows(secret.len()).any(|window| window == secret)
        })
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, printed: &Arc<Mutex<Vec<u8>>>) {
    let printed = Arc::clone(printed);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            let mut printed = printed.lock().expect("whole");
            printed.extend_from_slice(&buffer[..len]);
        }
    });
}
