//! What is at the other end of a machine's COM2: a TPM in software, and files that the machine asks for and gives.
//!
//! A TPM's command goes as it is, and its answer comes as it is. It begins with a byte that no text has. Everything else
//! is a line, which is answered by a line with a number, and so many bytes behind it, or by `-` if nothing is to be had:
//! `get NAME`; and `put NAME LENGTH`, with so many bytes behind it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// The first byte of TPMs' commands and answers (TPM 2.0 Library, part 2, 6.9).
const TPM: u8 = 0x80;
/// Bytes of a command up to its parameters; its length is from the third one on.
const HEADER: usize = 10;
/// No command, answer or file is longer.
const LONGEST: usize = 16 << 20;

/// Who has files for a machine, and takes its own.
pub(crate) trait Peer: Send {
    /// The file called `name`.
    fn get(&mut self, name: &str) -> Result<Vec<u8>>;
    /// Takes a file.
    fn put(&mut self, name: &str, bytes: Vec<u8>) -> Result<()>;
}

/// Has none, and takes none.
impl Peer for () {
    fn get(&mut self, name: &str) -> Result<Vec<u8>> {
        bail!("nothing is called {name}")
    }

    fn put(&mut self, name: &str, _: Vec<u8>) -> Result<()> {
        bail!("nobody wants {name}")
    }
}

/// A line that waits for its machine.
#[derive(Debug)]
pub(crate) struct Line {
    listener: TcpListener,
    /// The socket of the TPM.
    tpm: PathBuf,
}

impl Line {
    /// A line with the TPM whose socket is at `tpm`.
    pub(crate) fn with(tpm: &Path) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
        Ok(Self { listener, tpm: tpm.to_path_buf() })
    }

    /// What [`super::Machine::com2`] is for it.
    pub(crate) fn port(&self) -> Result<u16> {
        Ok(self.listener.local_addr().context("a port without a number")?.port())
    }

    /// Serves one machine until it is switched off.
    pub(crate) fn serve<P: Peer + 'static>(self, mut peer: P) -> Result<Served<P>> {
        let port = self.port()?;
        let thread = thread::spawn(move || {
            let (stream, _) = self.listener.accept().context("no machine has come")?;
            let answers = stream.try_clone().context("cannot share a connection")?;
            serve(BufReader::new(stream), answers, &self.tpm, &mut peer).map(|()| peer)
        });
        Ok(Served { port, thread })
    }
}

/// A line that a machine has, or has had.
#[derive(Debug)]
pub(crate) struct Served<P> {
    port: u16,
    thread: JoinHandle<Result<P>>,
}

impl<P> Served<P> {
    /// What the peer has become when the machine has gone; or why a request could not be served, the first one.
    pub(crate) fn finish(self) -> Result<P> {
        // If no machine ever came, this one does, and goes.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        self.thread.join().map_err(|_| anyhow!("the line's other end has panicked"))?
    }
}

/// Serves `requests` until they end.
fn serve(
    mut requests: BufReader<impl Read>,
    mut answers: impl Write,
    tpm: &Path,
    peer: &mut dyn Peer,
) -> Result<()> {
    let mut first_failure = None;
    while let Some(&first) = requests.fill_buf().context("the line broke")?.first() {
        if first == TPM {
            let command = message(&mut requests)?;
            answers.write_all(&ask(tpm, &command)?).context("the line broke")?;
            continue;
        }
        let mut line = Vec::new();
        let _ = requests.read_until(b'\n', &mut line).context("the line broke")?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let done = request(line.trim(), &mut requests, peer);
        let answer = match &done {
            Ok(bytes) => [format!("{}\n", bytes.len()).as_bytes(), bytes].concat(),
            Err(_) => b"-\n".to_vec(),
        };
        answers.write_all(&answer).context("the line broke")?;
        first_failure = first_failure.or(done.err());
    }
    first_failure.map_or(Ok(()), Err)
}

/// Does what a line says; the bytes of the answer.
fn request(line: &str, requests: &mut impl Read, peer: &mut dyn Peer) -> Result<Vec<u8>> {
    match line.split(' ').collect::<Vec<_>>()[..] {
        ["get", name] => peer.get(name),
        ["put", name, length] => {
            let length = length.parse().with_context(|| format!("no length: {line}"))?;
            ensure!(length <= LONGEST, "too long: {line}");
            let mut bytes = vec![0; length];
            requests.read_exact(&mut bytes).context("a file was cut short")?;
            peer.put(name, bytes).map(|()| Vec::new())
        }
        _ => bail!("no request: {line:?}"),
    }
}

/// A command or an answer of a TPM's.
fn message(from: &mut impl Read) -> Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER];
    from.read_exact(&mut bytes).context("a message of the TPM's was cut short")?;
    let length = bytes.get(2..).and_then(|rest| rest.first_chunk()).copied();
    let length = usize::try_from(u32::from_be_bytes(length.unwrap_or_default()))?;
    ensure!((HEADER..=LONGEST).contains(&length), "a message of {length} bytes");
    bytes.resize(length, 0);
    from.read_exact(bytes.get_mut(HEADER..).unwrap_or_default())
        .context("a message of the TPM's was cut short")?;
    Ok(bytes)
}

/// Has the TPM whose socket is at `tpm` execute `command`. Others may use it in between: it serves one at a time.
fn ask(tpm: &Path, command: &[u8]) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(tpm).context("the TPM is not there")?;
    stream.write_all(command).context("the TPM takes no command")?;
    message(&mut stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has one file, and what it was given.
    #[derive(Default)]
    struct Desk(Vec<(String, Vec<u8>)>);

    impl Peer for Desk {
        fn get(&mut self, name: &str) -> Result<Vec<u8>> {
            ensure!(name == "a", "nothing is called {name}");
            Ok(b"content".to_vec())
        }

        fn put(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
            self.0.push((name.to_owned(), bytes));
            Ok(())
        }
    }

    fn answers(requests: &[u8]) -> (Vec<u8>, Desk, Result<()>) {
        let (mut out, mut desk) = (Vec::new(), Desk::default());
        let done = serve(BufReader::new(requests), &mut out, Path::new("nowhere"), &mut desk);
        (out, desk, done)
    }

    #[test]
    fn files_go_both_ways_with_their_length_before_them() {
        let (out, desk, done) = answers(b"get a\nput b 3\nx\nyget a\r\n");
        done.unwrap();
        assert_eq!(out, b"7\ncontent0\n7\ncontent");
        assert_eq!(desk.0, [("b".to_owned(), b"x\ny".to_vec())]);
    }

    #[test]
    fn what_cannot_be_served_is_answered_and_told_at_the_end() {
        let (out, _, done) = answers(b"get b\nget a\n");
        assert_eq!(out, b"-\n7\ncontent");
        assert_eq!(done.unwrap_err().to_string(), "nothing is called b");
        for wrong in [&b"nonsense\n"[..], b"put b -1\n", b"put b 99999999999\n", b"put b 4\nabc"] {
            let (out, desk, done) = answers(wrong);
            assert_eq!((out, desk.0.len(), done.is_err()), (b"-\n".to_vec(), 0, true));
        }
    }

    #[test]
    fn a_message_has_the_length_that_it_tells() {
        let whole = [&[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 1][..], b"xy"].concat();
        assert_eq!(message(&mut &[&whole[..], b"more"].concat()[..]).unwrap(), whole);
        assert!(message(&mut &whole[..11]).is_err());
        assert!(message(&mut &[0x80, 1, 0, 0, 0, 9, 0, 0, 1, 1][..]).is_err());
        assert!(message(&mut &[0x80, 1, 0xff, 0, 0, 9, 0, 0, 1, 1][..]).is_err());
    }
}
