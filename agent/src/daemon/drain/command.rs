//! Runs a command of the operator's: no shell, a process group of its own, bounded in time
//! and in what is logged of its output.

use std::{process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    time::timeout,
};

/// Bytes of its output that are logged, of each of the two streams.
const OUTPUT_MAX: usize = 16 << 10;
/// Lines of it, at most.
const LINES_MAX: usize = 100;
/// How long its output is read on once it has ended: a process that it left behind may
/// hold the other end.
const OUTPUT_WITHIN: Duration = Duration::from_millis(200);

/// Runs it to its end. If this is dropped before, or time is up, its whole process group
/// is killed.
///
/// # Errors
///
/// It could not be started, failed, or took too long: what a person should read.
pub(super) async fn run(
    name: &'static str,
    argv: &[String],
    environment: &[(&'static str, String)],
    within: Duration,
) -> Result<(), String> {
    let [program, arguments @ ..] = argv else {
        return Ok(());
    };
    tracing::info!(command = name, program, "the operator's command runs");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command
        .spawn()
        .map_err(|error| format!("cannot start {program}: {error}"))?;
    let mut group = Group(child);
    let (out, err) = (group.0.stdout.take(), group.0.stderr.take());
    let out = tokio::spawn(output(out));
    let err = tokio::spawn(output(err));
    let ended = timeout(within, group.0.wait()).await;
    // Whoever is left of it at the end of its time holds the streams.
    drop(group);
    let (out, err) = tokio::join!(timeout(OUTPUT_WITHIN, out), timeout(OUTPUT_WITHIN, err));
    let text = |read: Result<Result<String, _>, _>| match read {
        Ok(Ok(text)) => text,
        _ => String::new(),
    };
    let (out, err) = (text(out), text(err));
    for line in out.lines().take(LINES_MAX) {
        tracing::info!(command = name, stream = "stdout", "{line}");
    }
    for line in err.lines().take(LINES_MAX) {
        tracing::info!(command = name, stream = "stderr", "{line}");
    }
    let said = err.lines().last().map(|line| format!(": {line}"));
    let said = said.unwrap_or_default();
    let failure = match ended {
        Ok(Ok(status)) if status.success() => return Ok(()),
        Ok(Ok(status)) => format!("{program} ended with {status}{said}"),
        Ok(Err(error)) => format!("cannot wait for {program}: {error}"),
        Err(_) => format!("{program} took longer than {within:?} and was killed{said}"),
    };
    tracing::warn!(
        command = name,
        error = failure,
        fix = "put the command right and repeat what was asked for (`homing drain` or `homing undrain`); `homing drain --force` drains in spite of it",
        "the operator's command has failed"
    );
    Err(failure)
}

/// What a stream says, as far as it is logged; the rest is read and dropped, so that the
/// process does not wait for it.
async fn output(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        let room = OUTPUT_MAX - kept.len();
        kept.extend(&chunk[..read.min(room)]);
    }
    let text = String::from_utf8_lossy(&kept);
    let harmless = |c: char| if c.is_control() && c != '\n' { '?' } else { c };
    text.chars().map(harmless).collect()
}

/// The process group of a command.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // While its leader is not reaped, its number is nobody else's.
        if let Some(pid) = self.0.id()
            && let Ok(pid) = i32::try_from(pid)
            && let Err(error) = killpg(Pid::from_raw(pid), Signal::SIGKILL)
        {
            tracing::warn!(
                %error, pid,
                fix = "look for what is left of it (`ps -o pid,args -g PID`), and end it by hand",
                "cannot kill the operator's command"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(20);

    async fn shell(script: &str, within: Duration) -> Result<(), String> {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned);
        let names = [
            ("HOMING_INSTANCE", "h2".to_owned()),
            ("HOMING_HOST", "7".to_owned()),
        ];
        run("on_drain", &argv, &names, within).await
    }

    #[tokio::test]
    async fn it_is_told_whose_command_it_is_and_how_it_failed_is_told() {
        let told = "test $HOMING_INSTANCE = h2 && test $HOMING_HOST = 7 && ! read x";
        assert_eq!(shell(told, WITHIN).await, Ok(()));
        let failed = shell("echo no such peer >&2; exit 3", WITHIN).await;
        let failed = failed.expect_err("it failed");
        assert!(failed.contains("exit status: 3: no such peer"), "{failed}");
        let missing = run("on_drain", &["/nonexistent/x".to_owned()], &[], WITHIN).await;
        let missing = missing.expect_err("it is not there");
        assert!(missing.contains("cannot start /nonexistent/x"), "{missing}");
    }

    #[tokio::test]
    async fn however_much_it_says_it_is_not_held_up() {
        let much = "yes | head -c 1000000; yes no | head -c 1000000 >&2";
        assert_eq!(shell(much, WITHIN).await, Ok(()));
        // One that stays behind does not hold up the drain either.
        let begun = Instant::now();
        assert_eq!(shell("sleep 1000 & echo $!", WITHIN).await, Ok(()));
        assert!(begun.elapsed() < WITHIN / 2);
    }

    /// The processes of a group, as `/proc` has them.
    fn is_alive(pid: i32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        status.is_ok_and(|status| !status.contains(") Z "))
    }

    #[tokio::test]
    async fn at_its_time_all_of_its_group_is_killed() {
        let folder = crate::admin::fake::Folder::new();
        let file = folder.0.join("pids");
        let script = format!(
            "sleep 1000 & echo $$ $! > {0}.new; mv {0}.new {0}; wait",
            file.display()
        );
        let late = tokio::spawn(async move { shell(&script, Duration::from_secs(2)).await });
        let pids = loop {
            if let Ok(text) = std::fs::read_to_string(&file) {
                break text;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let pids: Vec<i32> = pids
            .split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect();
        assert_eq!(pids.len(), 2);
        let failure = late.await.unwrap().expect_err("it took too long");
        assert!(failure.contains("took longer than 2s"), "{failure}");
        let gone = async {
            while pids.iter().any(|pid| is_alive(*pid)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(WITHIN, gone).await.expect("all are killed");
    }
}
