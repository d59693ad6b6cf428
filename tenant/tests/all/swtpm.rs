//! A software TPM, with a certificate of an authority of its own.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::Duration;
use std::{env, fs};

use super::boot::Event;

/// Control commands (swtpm's `ptm_ioctl.h`).
const SET_LOCALITY: u32 = 5;
const HASH_START: u32 = 6;
const HASH_DATA: u32 = 7;
const HASH_END: u32 = 8;

/// A running swtpm.
pub(crate) struct Swtpm {
    folder: PathBuf,
    child: Child,
}

/// Runs a program to its end.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}{text}",
        String::from_utf8_lossy(&output.stdout)
    );
}

impl Swtpm {
    /// Makes a TPM in `folder`, with a certificate of the authority in `authority`.
    pub(crate) fn make(folder: &Path, authority: &Path) -> Self {
        for folder in [folder, authority] {
            fs::create_dir_all(folder).unwrap();
        }
        let at = authority.display();
        let text = format!(
            "statedir = {at}\nsigningkey = {at}/signkey.pem\nissuercert = {at}/issuercert.pem\n\
             certserial = {at}/certserial\n"
        );
        fs::write(folder.join("localca.conf"), text).unwrap();
        fs::write(folder.join("localca.options"), "--platform-model test\n").unwrap();
        let tool = format!(
            "create_certs_tool = swtpm_localca\ncreate_certs_tool_config = {0}/localca.conf\n\
             create_certs_tool_options = {0}/localca.options\n",
            folder.display()
        );
        fs::write(folder.join("setup.conf"), tool).unwrap();
        run(Command::new("swtpm_setup")
            .args(["--tpm2", "--create-ek-cert", "--pcr-banks", "sha1,sha256", "--tpmstate"])
            .arg(folder)
            .arg("--config")
            .arg(folder.join("setup.conf")));
        let child = Self::start(folder);
        Self { folder: folder.into(), child }
    }

    fn start(folder: &Path) -> Child {
        for name in ["sock", "sock.ctrl"] {
            let _ = fs::remove_file(folder.join(name));
        }
        let mut child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear", "--tpmstate"])
            .arg(format!("dir={}", folder.display()))
            .arg("--server")
            .arg(format!("type=unixio,path={}/sock", folder.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}/sock.ctrl", folder.display()))
            .spawn()
            .unwrap();
        for _ in 0..100 {
            if folder.join("sock").exists() && folder.join("sock.ctrl").exists() {
                return child;
            }
            sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        panic!("swtpm does not start: {:?}", child.wait());
    }

    /// As if the machine was switched off and on, in order: a TPM counts the other times, and refuses to
    /// use keys then.
    pub(crate) fn reset(&mut self) {
        assert_eq!(self.command(&[0x80, 0x01], 0x145, &[0, 0]), 0);
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = Self::start(&self.folder);
    }

    /// What tpm2-tools need to find it.
    pub(crate) fn tools(&self) -> String {
        format!("swtpm:path={}/sock", self.folder.display())
    }

    fn control(&self, command: u32, data: &[u8]) {
        let mut stream = UnixStream::connect(self.folder.join("sock.ctrl")).unwrap();
        stream.write_all(&[&command.to_be_bytes()[..], data].concat()).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0; 4], "control command {command}");
    }

    /// The response code of a command.
    fn command(&self, tag: &[u8; 2], code: u32, parameters: &[u8]) -> u32 {
        let mut stream = UnixStream::connect(self.folder.join("sock")).unwrap();
        let length = u32::try_from(10 + parameters.len()).unwrap();
        let head = [&tag[..], &length.to_be_bytes(), &code.to_be_bytes()].concat();
        stream.write_all(&[&head, parameters].concat()).unwrap();
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).unwrap();
        u32::from_be_bytes(answer[6..].try_into().unwrap())
    }

    /// TPM2_PCR_Event at a locality: the response code.
    pub(crate) fn extend(&self, locality: u8, event: &Event) -> u32 {
        self.control(SET_LOCALITY, &[locality]);
        let length = u16::try_from(event.measured.len()).unwrap();
        // An empty password; the PCR's handle is its number.
        let session = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
        let parameters =
            [&event.pcr.to_be_bytes()[..], &session, &length.to_be_bytes(), &event.measured]
                .concat();
        let code = self.command(&[0x80, 0x02], 0x13c, &parameters);
        self.control(SET_LOCALITY, &[0]);
        code
    }

    /// What a processor does at a dynamic launch.
    pub(crate) fn launch(&self, measured: &[u8]) {
        self.control(HASH_START, &[]);
        let length = u32::try_from(measured.len()).unwrap();
        self.control(HASH_DATA, &[&length.to_be_bytes()[..], measured].concat());
        self.control(HASH_END, &[]);
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program `visorctl`: where `VISORCTL` says, or beside this one.
pub(crate) fn visorctl(tpm: &Swtpm) -> Command {
    let beside = Path::new(env!("CARGO_BIN_EXE_tenant")).with_file_name("visorctl");
    let mut command = Command::new(env::var_os("VISORCTL").map_or(beside, PathBuf::from));
    let _ = command.env("TPM2TOOLS_TCTI", tpm.tools());
    command
}
