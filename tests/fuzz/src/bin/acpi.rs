//! ACPI tables: after a first byte of 0, the bytes are what a BIOS left in memory; after any
//! other, they are the contents of a table whose length and checksum are made right.
#![no_main]

use boot::acpi::{ApicId, Madt, Processors, Root, Signature, mcfg, power, tpm};
use boot::memory::Memory;
use ept::addr::{PHYSICAL_END, Span};
use ept::list::List;
use fuzz::{Window, pointer, table};

const BIOS: u32 = 0xe_0000;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else {
        return;
    };
    if kind == 0 {
        let mut bios = bytes.to_vec();
        bios.resize(0x2_0000, 0);
        return read(&Window::new(BIOS.into(), &bios));
    }
    let mut bios = pointer(BIOS + 0x40);
    bios.resize(0x40, 0);
    let list = [BIOS + 0x80, BIOS + 0x4000, BIOS + 0x8000, BIOS + 0xc000];
    bios.extend(table(*b"RSDT", &list.map(u32::to_le_bytes).concat()));
    for (at, name) in [(0x80, *b"APIC"), (0x4000, *b"MCFG"), (0x8000, *b"FACP"), (0xc000, *b"TPM2")]
    {
        bios.resize(at, 0);
        bios.extend(table(name, &bytes[..bytes.len().min(0x2000)]));
    }
    bios.resize(0x2_0000, 0);
    read(&Window::new(BIOS.into(), &bios));
});

fn read(memory: &dyn Memory) {
    let root = match Root::find(memory, None) {
        Ok(root) => root,
        Err(error) => return fuzz::one_line(&error.to_string()),
    };
    if let Ok(madt) = Madt::find(memory, root) {
        let mut ids: Processors = List::new(ApicId(0));
        match madt.processors(&mut ids) {
            Ok(()) => assert!(!ids.is_empty()),
            Err(error) => fuzz::one_line(&error.to_string()),
        }
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), ids.len());
        let _address = madt.local_apic();
    }
    if let Ok(regions) = mcfg(memory, root) {
        for region in regions.iter() {
            let buses = u64::from(region.last_bus) - u64::from(region.first_bus) + 1;
            assert_eq!(region.span.len(), buses << 20);
            assert!(Span::new(0, PHYSICAL_END).is_some_and(|all| all.covers(region.span)));
        }
    }
    if let Ok(power) = power(memory, root) {
        assert!(power.sleep.iter().all(|port| *port != 0));
    }
    let _tpm = tpm(memory, root);
    if let Ok(Some(table)) = root.table(memory, Signature::DMAR) {
        assert!(table.starts_with(b"DMAR"));
    }
}
