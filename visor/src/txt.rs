//! Whether Intel TXT has launched what launched the visor, so that PCR 17 and 18 say who they are.

use attest::measure::{Before, Launch, Recorder};
use attest::tpm::{Error, Registers};
use boot::txt::{self, TxtError};

use crate::memory::{self, BootMemory};

/// How the visor was launched: by TXT only if the machine and its TPM, in which PCR 19 was `before`, agree. The
/// chipset then remembers that there are secrets in memory, and has firmware scrub it after a reset, before anything
/// else reads it. `shared` is the address of tboot's page, if it has told one.
///
/// A contradiction is one line in the log, and makes the launch a plain one. If the TPM has seen a measured one all the
/// same, tenants refuse that: they replay PCR 19 from all ones then.
pub(crate) fn launch<R: Registers>(
    shared: Option<u32>,
    before: Before,
    recorder: &mut Recorder<'_, R>,
) -> Result<Launch, Error> {
    let found = txt::check(|offset| memory::read(txt::PUBLIC + offset), &BootMemory, shared);
    let done = match found {
        Ok(()) if before == Before::Zeros && recorder.holds_launch()? => keep_secrets(),
        Ok(()) => Err(TxtError::Unmeasured),
        Err(why) => Err(why),
    };
    Ok(match done {
        Ok(()) => {
            log::info!("TXT: this is a measured launch; memory is scrubbed after a reset");
            Launch::Txt
        }
        Err(why) => {
            if !why.is_usual() || before != Before::Ones || shared.is_some() {
                log::warn!("TXT: this is not taken for a measured launch: {why}");
            }
            Launch::Plain
        }
    })
}

/// Has the chipset remember that there are secrets in memory.
fn keep_secrets() -> Result<(), TxtError> {
    memory::write(txt::PRIVATE + txt::CMD_SECRETS, 1_u64);
    // Which also waits until the write has arrived.
    txt::check_secrets(memory::read(txt::PRIVATE + txt::E2STS))
}
