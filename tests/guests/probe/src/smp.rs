//! Further processors.

/// Most processors the probe handles; APIC ids are taken to count from 0.
pub(crate) const MAX_CPUS: usize = 8;

/// Where `boot.s` brings a started processor.
#[unsafe(no_mangle)]
extern "C" fn probe_ap_main(_index: u32) -> ! {
    crate::power::halt()
}
