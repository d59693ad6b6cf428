//! Event logs: the firmware's and the visor's.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use evidence::{Bytes, LIMIT, Statement, Visor};
use ticket::port::{INDEX_KEYS, INDEX_LOG, INDEX_LOG_BYTES, WITH_TPM};

use crate::failure::Failure;
use crate::port::Port;
use crate::receipt::{NONCE, Signed, sign};
use crate::visor;

/// Where Linux shows the firmware's log.
pub(super) const FIRMWARE: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// The firmware's log. A machine may have none.
pub(super) fn firmware(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match File::open(path) {
        Ok(file) => {
            let mut log = Vec::new();
            let read = file.take(LIMIT).read_to_end(&mut log);
            let _bytes = read.map_err(|why| Failure::File(path.into(), why))?;
            Ok(Some(log))
        }
        Err(why) if why.kind() == ErrorKind::NotFound && path == Path::new(FIRMWARE) => Ok(None),
        Err(why) => Err(Failure::File(path.into(), why)),
    }
}

/// No log is longer: it is in one page.
const LONGEST: u32 = 4096;

/// The visor's log from a file, or from the port; at the port it signs `nonce`, too. A file has
/// the keys as its last 64 bytes.
pub(super) fn visor<P: Port>(
    path: Option<&Path>,
    nonce: &[u8; 32],
    port: impl FnOnce() -> Result<P, Failure>,
) -> Result<Visor, Failure> {
    let (log, key, alive) = match path {
        Some(path) => {
            let log = fs::read(path).map_err(|why| Failure::File(path.into(), why))?;
            let key = log.last_chunk::<64>().map_or(&log[..], |key| key).to_vec();
            (log, key, None)
        }
        None => {
            let mut visor = visor::Visor::find(port()?)?;
            if visor.version() < WITH_TPM {
                return Err(Failure::OldVisor(visor.version()));
            }
            let (log, key) = (log(&mut visor)?, visor.bytes::<64>(INDEX_KEYS).to_vec());
            (log, key, sign(&mut visor, NONCE, nonce)?)
        }
    };
    let alive = alive.map(|Signed { body, signature }| Statement { body, signature });
    Ok(Visor { key: Bytes(key), log: Bytes(log), alive })
}

fn log<P: Port>(visor: &mut visor::Visor<P>) -> Result<Vec<u8>, Failure> {
    let bytes = visor.value(INDEX_LOG_BYTES);
    match bytes {
        0 => return Err(Failure::NoLog),
        1..=LONGEST => {}
        value => return Err(Failure::Protocol { index: INDEX_LOG_BYTES, value }),
    }
    let mut log = Vec::new();
    for word in 0..bytes.div_ceil(4) {
        visor.put(INDEX_LOG, word);
        log.extend(visor.value(INDEX_LOG).to_le_bytes());
    }
    log.truncate(usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(log)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use ticket::port::{
        INDEX_LOG, INDEX_LOG_BYTES, INDEX_MAGIC, INDEX_NONCE, INDEX_SIGN, INDEX_SIGNATURE,
        INDEX_STATEMENT, INDEX_VERSION, MAGIC,
    };

    use super::visor;
    use crate::failure::Failure;
    use crate::port::Port;

    /// A visor with a log of words that count, which signs by giving the nonce back.
    #[derive(Clone, Default)]
    struct Fake {
        selected: u32,
        values: Rc<RefCell<BTreeMap<u32, u32>>>,
    }

    impl Port for Fake {
        fn select(&mut self, index: u32) {
            self.selected = index;
        }

        fn read(&mut self) -> u32 {
            let value = self.values.borrow().get(&self.selected).copied().unwrap_or(u32::MAX);
            if self.selected == INDEX_LOG { value.wrapping_mul(0x0101_0101) } else { value }
        }

        fn write(&mut self, value: u32) {
            let mut values = self.values.borrow_mut();
            if self.selected == INDEX_SIGN {
                let nonce: Vec<_> = (0..8).map(|at| values[&(INDEX_NONCE + at)]).collect();
                values
                    .extend(nonce.into_iter().zip(INDEX_STATEMENT..).map(|(word, at)| (at, word)));
                values.extend((8..10).map(|at| (INDEX_STATEMENT + at, 7)));
                values.extend((0..16).map(|at| (INDEX_SIGNATURE + at, at)));
                let _ = values.insert(INDEX_SIGN, 40);
            } else {
                let _ = values.insert(self.selected, value);
            }
        }
    }

    fn fake(version: u32, bytes: u32) -> Fake {
        let values = [(INDEX_MAGIC, MAGIC), (INDEX_VERSION, version), (INDEX_LOG_BYTES, bytes)];
        Fake { selected: 0, values: Rc::new(RefCell::new(values.into())) }
    }

    #[test]
    fn the_port_gives_log_key_and_a_signed_nonce() {
        let seen = visor(None, &[5; 32], || Ok(fake(0x0001_0004, 70))).unwrap();
        assert_eq!((seen.log.0.len(), seen.key.0.len()), (70, 64));
        assert_eq!((&seen.log.0[..5], &seen.log.0[68..]), (&[0, 0, 0, 0, 1][..], &[17, 17][..]));
        // What the port has there; nobody has written it.
        assert_eq!(seen.key.0, [0xff; 64]);
        let alive = seen.alive.unwrap();
        assert_eq!((&alive.body.0[..32], alive.signature.0.len()), (&[5; 32][..], 64));
    }

    #[test]
    fn no_log_an_impossible_one_and_an_old_visor_are_told_apart() {
        let tell = |version, bytes| visor(None, &[5; 32], || Ok(fake(version, bytes))).unwrap_err();
        assert!(matches!(tell(0x0001_0004, 0), Failure::NoLog));
        assert!(matches!(tell(0x0001_0004, 4097), Failure::Protocol { .. }));
        assert!(matches!(tell(0x0001_0003, 70), Failure::OldVisor(0x0001_0003)));
    }
}
