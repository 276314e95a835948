//! The server: checks what it gets and answers with what it should.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use super::{MAGIC, MAX_LEN, down};
use crate::random::stream;

/// Listens on all `addresses` and serves until the process ends. `ready` is called
/// once all of them listen.
pub async fn serve(addresses: &[SocketAddr], ready: impl FnOnce()) -> Result<()> {
    let mut listeners = Vec::new();
    for address in addresses {
        listeners.push(
            TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?,
        );
    }
    ready();
    let tasks: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::spawn(accept(listener)))
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

async fn accept(listener: TcpListener) -> Result<()> {
    loop {
        let (connection, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The connection was gone before it was accepted.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error).context("cannot accept connections"),
        };
        tokio::spawn(async move {
            if let Err(error) = answer(connection).await {
                eprintln!("{client}: {error:#}");
            }
        });
    }
}

pub(super) async fn answer(connection: TcpStream) -> Result<()> {
    connection.set_nodelay(true)?;
    let mut connection = BufReader::with_capacity(16 * 1024, connection);
    let mut magic = [0; 8];
    connection.read_exact(&mut magic).await?;
    if magic != MAGIC {
        bail!("not a client of this workload");
    }
    let seed = connection.read_u64().await?;
    let (mut up_offset, mut down_offset) = (0, 0);
    let (mut got, mut wanted, mut answer) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let len = match connection.read_u32().await {
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let answer_len = connection.read_u32().await?;
        if len > MAX_LEN || answer_len > MAX_LEN {
            bail!(
                "a length of {} bytes: the stream is corrupt",
                len.max(answer_len)
            );
        }
        got.resize(len as usize, 0);
        connection.read_exact(&mut got).await?;
        wanted.resize(len as usize, 0);
        stream(seed, up_offset, &mut wanted);
        if got != wanted {
            bail!("wrong bytes within {len} from {up_offset}");
        }
        up_offset += u64::from(len);
        answer.resize(answer_len as usize, 0);
        stream(down(seed), down_offset, &mut answer);
        down_offset += u64::from(answer_len);
        connection.write_all(&answer).await?;
    }
}
