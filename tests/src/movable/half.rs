//! Connections of which one end has ended its half while the other goes on.

use std::{
    cell::Cell,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::sleep};

use super::{
    TRAILER_LEN,
    connection::{Check, Talk, half_close},
    kernel,
};
use crate::{random::stream as fill, workload::End};

/// How many bytes go up before the client ends its half.
const UP: usize = 3_000;
/// How often the kernel is asked whether it has closed a connection.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The client ends its half at once, the server (`CLOSE_WAIT`) goes on.
pub(super) async fn close_wait(
    talk: &Talk<'_>,
    stream: &TcpStream,
    seed: u64,
    len: u64,
    rate: u64,
) -> Result<(), End> {
    let greeting = format!("bulk {seed} {len} {rate}\n");
    talk.write(stream, greeting.as_bytes()).await?;
    let mut up = vec![0; UP];
    fill(seed, 0, &mut up);
    talk.write(stream, &up).await?;
    half_close(stream)?;
    let mut check = Check::new(seed, TRAILER_LEN);
    while let Some(bytes) = talk.read(stream, true).await? {
        talk.record.news_up();
        talk.record.news_down(check.take(&bytes)?);
    }
    if check.len() != len {
        return Err(End::Ended);
    }
    talk.trailer(&check, UP as u64)
}

/// The server ends its half after `len` bytes (`FIN_WAIT2`), the client goes on.
pub(super) async fn fin_wait(
    talk: &Talk<'_>,
    stream: &TcpStream,
    seed: u64,
    len: u64,
    up: u64,
) -> Result<(), End> {
    let greeting = format!("bulk {seed} {len} 0\n");
    talk.write(stream, greeting.as_bytes()).await?;
    let mut check = Check::new(seed, 0);
    while let Some(bytes) = talk.read(stream, true).await? {
        talk.record.news_down(check.take(&bytes)?);
    }
    if check.len() != len {
        return Err(End::Ended);
    }
    let sent = Cell::new(0);
    let reports = async {
        // Nothing comes down any more, and nothing is waited for.
        loop {
            sleep(LOOK_EVERY).await;
            talk.record.news_down(0);
        }
    };
    tokio::select! {
        written = talk.write_stream(stream, seed, up, &sent) => written?,
        () = reports => {}
    }
    closed(talk, stream).await?;
    // It would have been reset if not all had been right.
    let all = &talk.record.up;
    all.fetch_add(sent.get(), Relaxed);
    Ok(())
}

/// Waits until the server's kernel has confirmed everything, to the end of it.
async fn closed(talk: &Talk<'_>, stream: &TcpStream) -> Result<(), End> {
    let started = Instant::now();
    loop {
        if let Ok(Some(error)) = stream.take_error() {
            return Err(crate::workload::end_of(&error));
        }
        if kernel::info(stream).is_ok_and(|info| info.closed) {
            return Ok(());
        }
        if started.elapsed() > talk.deadline {
            return Err(End::Silence);
        }
        sleep(LOOK_EVERY).await;
    }
}
