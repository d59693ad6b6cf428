//! A boot as it is measured: what the firmware, GRUB and the visor extend, and their logs.

use attest::keys::Keys;
use attest::statement::Statement;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What stands for `visor.elf`.
pub(crate) const VISOR: &[u8] = b"the visor's image";
pub(crate) const COMMAND_LINE: &str = "console=com1";

/// EV_SEPARATOR, EV_EVENT_TAG, EV_IPL, EV_EFI_PLATFORM_FIRMWARE_BLOB, EV_EFI_BOOT_SERVICES_APPLICATION.
pub(crate) const SEPARATOR: u32 = 4;
pub(crate) const TAGGED: u32 = 6;
pub(crate) const IPL: u32 = 13;
pub(crate) const BLOB: u32 = 0x8000_0008;
pub(crate) const APPLICATION: u32 = 0x8000_0003;

/// An event: what is hashed, and what the log says of it.
#[derive(Clone)]
pub(crate) struct Event {
    pub(crate) pcr: u32,
    pub(crate) kind: u32,
    pub(crate) measured: Vec<u8>,
    pub(crate) told: Vec<u8>,
}

pub(crate) fn event(pcr: u32, kind: u32, measured: &[u8], told: &[u8]) -> Event {
    Event { pcr, kind, measured: measured.to_vec(), told: told.to_vec() }
}

/// What the firmware and GRUB measure.
pub(crate) fn firmware() -> Vec<Event> {
    let mut events = vec![
        event(0, BLOB, b"firmware", b"firmware's volume"),
        event(1, 0x8000_0002, b"boot order", b"boot order"),
        event(2, 0x8000_0004, b"driver of a card", b"driver of a card"),
        event(7, 0x8000_0001, b"SecureBoot", b"SecureBoot"),
    ];
    events.extend((0..8).map(|pcr| event(pcr, SEPARATOR, &[0; 4], &[0; 4])));
    events.push(event(4, APPLICATION, b"GRUB's image", b"GRUB"));
    let command = format!("multiboot2 /visor.elf {COMMAND_LINE}");
    events.push(event(8, IPL, command.as_bytes(), format!("grub_cmd: {command}\0").as_bytes()));
    events.push(event(9, IPL, VISOR, b"/visor.elf\0"));
    events.push(event(9, IPL, b"a kernel", b"/vmlinuz\0"));
    events
}

/// The content of a tagged event.
pub(crate) fn tagged(id: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap();
    [&id.to_le_bytes()[..], &length.to_le_bytes(), content].concat()
}

/// What the visor says of itself.
#[derive(Clone)]
pub(crate) struct Visor {
    pub(crate) launch: &'static str,
    /// What only builds for tests say.
    pub(crate) for_tests: &'static str,
    pub(crate) command_line: String,
    pub(crate) dev_tickets: &'static str,
    pub(crate) iommu: &'static str,
    /// What its keys are made of.
    pub(crate) random: u8,
}

impl Visor {
    pub(crate) fn new(launch: &'static str) -> Self {
        let command_line = COMMAND_LINE.to_owned();
        Self { launch, for_tests: "", command_line, dev_tickets: "no", iommu: "on", random: 0x42 }
    }

    pub(crate) fn keys(&self) -> Keys {
        Keys::new(&[self.random; 64], None).unwrap()
    }

    pub(crate) fn key(&self) -> [u8; 64] {
        *self.keys().public()
    }

    pub(crate) fn configuration(&self) -> String {
        format!(
            "format=1\nvisor=0.1.0\nlaunch={}\n{}command-line={}\ndev-tickets={}\nunprotected-vms=run\n",
            self.launch, self.for_tests, self.command_line, self.dev_tickets
        )
    }

    /// The three events of PCR 19.
    pub(crate) fn events(&self) -> Vec<Event> {
        let iommu = format!("iommu={}\nunits=1\n", self.iommu);
        let contents = [self.configuration().into_bytes(), iommu.into_bytes(), self.key().to_vec()];
        let tagged = contents.iter().zip(0x5653_0001..).map(|(content, id)| tagged(id, content));
        tagged.map(|data| event(19, TAGGED, &data, &data)).collect()
    }

    /// The statement that it is alive, and its signature.
    pub(crate) fn alive(&self, nonce: &[u8]) -> (Vec<u8>, Vec<u8>) {
        self.state(&Statement::Nonce { age: 7 }, nonce)
    }

    /// A statement's body, and its signature.
    pub(crate) fn state(&self, statement: &Statement, nonce: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let body = statement.body(nonce.try_into().unwrap());
        let signature = self.keys().state(statement.kind(), &body);
        (body.to_vec(), signature.to_vec())
    }
}

/// What a dynamic launch measures: the visor, and then what is before it.
pub(crate) fn launch() -> Vec<Event> {
    vec![event(17, 0x501, VISOR, b"launched"), event(18, 0x502, b"its policy", b"policy")]
}

/// A log with the banks SHA-1 and SHA-256.
pub(crate) fn log(events: &[Event]) -> Vec<u8> {
    let mut log = header();
    events.iter().for_each(|event| log.extend(entry(event)));
    log
}

/// TCG_PCR_EVENT with TCG_EfiSpecIdEvent.
pub(crate) fn header() -> Vec<u8> {
    let mut content = b"Spec ID Event03\0".to_vec();
    content.extend([0, 0, 0, 0, 0, 2, 0, 2]);
    content.extend(2_u32.to_le_bytes());
    content.extend([4, 0, 20, 0, 11, 0, 32, 0, 0]);
    let mut header = vec![0, 0, 0, 0, 3, 0, 0, 0];
    header.extend([0; 20]);
    header.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
    header.extend(content);
    header
}

/// TCG_PCR_EVENT2.
pub(crate) fn entry(event: &Event) -> Vec<u8> {
    let mut entry = [event.pcr, event.kind, 2].map(u32::to_le_bytes).concat();
    entry.extend([4, 0]);
    entry.extend(Sha1::digest(&event.measured));
    entry.extend([11, 0]);
    entry.extend(Sha256::digest(&event.measured));
    entry.extend(u32::try_from(event.told.len()).unwrap().to_le_bytes());
    entry.extend(&event.told);
    entry
}
