//! Plain TCP: a message is four bytes of length, little-endian, and the bytes; one write
//! for each, without Nagle's algorithm.

use std::{
    io::{BufRead as _, BufReader, IoSlice, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
};

use anyhow::{Context as _, Result, ensure};

use super::transport::{Listener, Pipe};

/// What is read ahead at once: many small messages.
const BUFFER: usize = 256 << 10;
/// The longest message.
const LONGEST: usize = 16 << 20;
/// The bytes of a length.
const PREFIX: usize = size_of::<u32>();

/// Listens for so many connections.
pub fn listen(at: IpAddr, connections: usize) -> Result<Box<dyn Listener>> {
    let socket = TcpListener::bind((at, 0)).with_context(|| format!("cannot listen on {at}"))?;
    Ok(Box::new(Listening {
        address: socket.local_addr()?.to_string(),
        socket,
        connections,
    }))
}

/// Opens so many connections.
pub fn connect(to: &str, connections: usize) -> Result<Vec<Box<dyn Pipe>>> {
    let open = |_| pipe(TcpStream::connect(to)?);
    let pipes: Result<_> = (0..connections).map(open).collect();
    pipes.with_context(|| format!("cannot connect to {to}"))
}

struct Listening {
    socket: TcpListener,
    address: String,
    connections: usize,
}

impl Listener for Listening {
    fn address(&self) -> String {
        self.address.clone()
    }

    fn accept(self: Box<Self>) -> Result<Vec<Box<dyn Pipe>>> {
        (0..self.connections)
            .map(|_| pipe(self.socket.accept()?.0))
            .collect()
    }
}

fn pipe(stream: TcpStream) -> Result<Box<dyn Pipe>> {
    stream.set_nodelay(true)?;
    Ok(Box::new(Framed::new(stream)))
}

/// A stream of bytes as a stream of messages.
struct Framed<S> {
    stream: BufReader<S>,
    /// A batch on its way out.
    batch: Vec<u8>,
}

impl<S: Read + Write> Framed<S> {
    fn new(stream: S) -> Self {
        Self {
            stream: BufReader::with_capacity(BUFFER, stream),
            batch: Vec::new(),
        }
    }
}

fn prefix(message: &[u8]) -> [u8; PREFIX] {
    (message.len() as u32).to_le_bytes()
}

impl<S: Read + Write + Send> Pipe for Framed<S> {
    fn send(&mut self, message: &[u8]) -> Result<()> {
        let prefix = prefix(message);
        let mut parts = &mut [IoSlice::new(&prefix), IoSlice::new(message)][..];
        while !parts.is_empty() {
            let len = self.stream.get_mut().write_vectored(parts)?;
            ensure!(len > 0, "the connection takes nothing");
            IoSlice::advance_slices(&mut parts, len);
        }
        Ok(())
    }

    fn send_batch(&mut self, messages: &[Vec<u8>]) -> Result<()> {
        self.batch.clear();
        for message in messages {
            self.batch.extend(prefix(message));
            self.batch.extend(message);
        }
        Ok(self.stream.get_mut().write_all(&self.batch)?)
    }

    fn receive(&mut self, message: &mut Vec<u8>) -> Result<()> {
        let mut prefix = [0; PREFIX];
        self.stream
            .read_exact(&mut prefix)
            .context("the connection has ended")?;
        let len = u32::from_le_bytes(prefix) as usize;
        ensure!(len <= LONGEST, "a message of {len} bytes is too long");
        message.clear();
        if let Some(bytes) = self.stream.buffer().get(..len) {
            message.extend(bytes);
            self.stream.consume(len);
        } else {
            (&mut self.stream).take(len as u64).read_to_end(message)?;
        }
        ensure!(
            message.len() == len,
            "the connection has ended within a message"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// What is written to it can be read from it; no call goes beyond the cut.
    #[derive(Default)]
    struct Cut {
        bytes: Vec<u8>,
        read: usize,
        cut: usize,
    }

    impl Cut {
        /// How many of so many bytes a call at this place may have.
        fn allowed(&self, at: usize, len: usize) -> usize {
            if at < self.cut {
                len.min(self.cut - at)
            } else {
                len
            }
        }
    }

    impl Write for Cut {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let len = self.allowed(self.bytes.len(), bytes.len());
            self.bytes.extend(&bytes[..len]);
            Ok(len)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Read for Cut {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = buffer.len().min(self.bytes.len() - self.read);
            let len = self.allowed(self.read, len);
            buffer[..len].copy_from_slice(&self.bytes[self.read..][..len]);
            self.read += len;
            Ok(len)
        }
    }

    fn messages() -> Vec<Vec<u8>> {
        [0, 1, 5, 64, 300].map(|len| vec![len as u8; len]).into()
    }

    fn framed(cut: usize) -> Framed<Cut> {
        Framed::new(Cut {
            cut,
            ..Cut::default()
        })
    }

    fn expect_all(framed: &mut Framed<Cut>) {
        let mut message = vec![9; 3];
        for expected in messages() {
            framed.receive(&mut message).unwrap();
            assert_eq!(message, expected);
        }
        assert!(framed.receive(&mut message).is_err());
    }

    #[test]
    fn messages_come_out_whole_wherever_calls_are_cut() {
        let total: usize = messages()
            .iter()
            .map(|message| PREFIX + message.len())
            .sum();
        for cut in 0..=total {
            let mut single = framed(cut);
            for message in messages() {
                single.send(&message).unwrap();
            }
            assert_eq!(single.stream.get_ref().bytes.len(), total);
            expect_all(&mut single);
            let mut batch = framed(cut);
            batch.send_batch(&messages()).unwrap();
            expect_all(&mut batch);
        }
    }

    #[test]
    fn longer_messages_than_the_buffer_come_out_whole() {
        let mut framed = framed(BUFFER + 1);
        for len in [BUFFER - PREFIX, BUFFER, 3 * BUFFER, 1] {
            framed.send(&vec![len as u8; len]).unwrap();
        }
        let mut message = Vec::new();
        for len in [BUFFER - PREFIX, BUFFER, 3 * BUFFER, 1] {
            framed.receive(&mut message).unwrap();
            assert_eq!(message, vec![len as u8; len]);
        }
    }

    #[test]
    fn an_end_within_a_message_is_an_error() {
        for bytes in [&[][..], &[1, 0], &[2, 0, 0, 0, 7], &[0, 0, 0, 255]] {
            let mut framed = Framed::new(Cut {
                bytes: bytes.to_vec(),
                ..Cut::default()
            });
            assert!(framed.receive(&mut Vec::new()).is_err(), "{bytes:?}");
        }
    }
}
