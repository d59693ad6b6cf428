//! What a Linux on the visor sees otherwise than on the bare machine, and why that is right.

/// A difference that is as it should be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) section: &'static str,
    /// The bare machine's line, in which `*` stands for any text; empty where it has none.
    pub(super) bare: &'static str,
    /// The lines in its place on the visor, in which `$1` is what the first `*` stood for and
    /// `{low.…}` and `{top.…}` are edges and sizes of what the visor keeps.
    pub(super) visor: &'static [&'static str],
    pub(super) need: Need,
    pub(super) why: &'static str,
}

/// Whether a rule has to apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// It applies, and what it says is gone is gone altogether.
    Must,
    /// It applies or not, with the kernel, the machine and the time.
    May,
}

const fn must(
    section: &'static str,
    bare: &'static str,
    visor: &'static [&'static str],
    why: &'static str,
) -> Rule {
    let need = Need::Must;
    Rule { section, bare, visor, need, why }
}

const fn may(
    section: &'static str,
    bare: &'static str,
    visor: &'static [&'static str],
    why: &'static str,
) -> Rule {
    let need = Need::May;
    Rule { section, bare, visor, need, why }
}

const APIC: &str = "of APIC virtualization only the TPR is safe";
const APIC_PART: &str = "Linux reads this off the VMX capabilities: see there";
const SHADOWING: &str = "VMCS shadowing is the visor's own";
const STORE: &str = "the debug store is hidden: it writes to linear addresses of whoever runs";
const STORE_USER: &str = "Linux needs the debug store for this, and that is hidden";
const LOW: &str = "the visor keeps 12 KiB of low memory to start processors with";
const TOP: &str = "the visor keeps this memory for itself";
const SIZE: &str = "what the visor keeps is not counted, and the initrd counts elsewhere";
const WORDS: &str = "isolinux adds these words when it loads a Linux by itself";
const PLACE: &str = "boot loaders put the initrd where they like, and the kernel builds around it";
const NUMBER: &str = "Linux looks for these side by side and numbers them as it finds them";
const TIME: &str = "a measured time";

/// Every difference that is as it should be, and why; the first rule that fits is taken.
pub(super) const RULES: &[Rule] = &[
    must("cpuinfo", "cpu *: flags: flexpriority", &[], APIC_PART),
    must("cpuinfo", "cpu *: vmx flags: flexpriority", &[], APIC),
    must("cpuinfo", "cpu *: vmx flags: vapic", &[], APIC),
    must("cpuinfo", "cpu *: vmx flags: vapic_reg", &[], APIC),
    must("cpuinfo", "cpu *: vmx flags: vid", &[], APIC),
    must("cpuinfo", "cpu *: vmx flags: shadow_vmcs", &[], SHADOWING),
    must("cpuinfo", "cpu *: flags: dts", &[], STORE),
    must("cpuinfo", "cpu *: flags: dtes64", &[], STORE),
    must("cpuinfo", "cpu *: flags: ds_cpl", &[], STORE),
    must("cpuinfo", "cpu *: flags: pebs", &[], STORE_USER),
    must("cpuinfo", "cpu *: flags: bts", &[], STORE_USER),
    may("cpuinfo", "cpu *: cpu MHz: *", &["cpu $1: cpu MHz: *"], TIME),
    may("cpuinfo", "cpu *: bogomips: *", &["cpu $1: bogomips: *"], TIME),
    must(
        "iomem",
        "00001000-* : System RAM",
        &[
            "00001000-{low.before} : System RAM",
            "{low.first}-{low.last} : Reserved",
            "{low.after}-$1 : System RAM",
        ],
        LOW,
    ),
    must(
        "iomem",
        "00100000-* : System RAM",
        &[
            "00100000-{top.before} : System RAM",
            "{top.first}-{top.last} : Reserved",
            "{top.after}-$1 : System RAM",
        ],
        TOP,
    ),
    must("meminfo", "MemTotal: * kB", &["MemTotal: * kB"], SIZE),
    must("dmesg", "Command line: BOOT_IMAGE=* initrd=* *", &["Command line: $3"], WORDS),
    must(
        "dmesg",
        "Kernel command line: BOOT_IMAGE=* initrd=* *",
        &["Kernel command line: $3"],
        WORDS,
    ),
    must(
        "dmesg",
        "BIOS-e820: [mem 0x0000000000000000-0x*] usable",
        &[
            "BIOS-e820: [mem 0x0000000000000000-0x00000000{low.before}] usable",
            "BIOS-e820: [mem 0x00000000{low.first}-0x00000000{low.last}] reserved",
            "BIOS-e820: [mem 0x00000000{low.after}-0x$1] usable",
        ],
        LOW,
    ),
    must(
        "dmesg",
        "BIOS-e820: [mem 0x0000000000100000-0x*] usable",
        &[
            "BIOS-e820: [mem 0x0000000000100000-0x00000000{top.before}] usable",
            "BIOS-e820: [mem 0x00000000{top.first}-0x00000000{top.last}] reserved",
            "BIOS-e820: [mem 0x00000000{top.after}-0x$1] usable",
        ],
        TOP,
    ),
    must(
        "dmesg",
        "  node   0: [mem 0x0000000000001000-0x*]",
        &[
            "  node   0: [mem 0x0000000000001000-0x00000000{low.before}]",
            "  node   0: [mem 0x00000000{low.after}-0x$1]",
        ],
        LOW,
    ),
    must(
        "dmesg",
        "  node   0: [mem 0x0000000000100000-0x*]",
        &[
            "  node   0: [mem 0x0000000000100000-0x00000000{top.before}]",
            "  node   0: [mem 0x00000000{top.after}-0x$1]",
        ],
        TOP,
    ),
    may("dmesg", "", &["On node 0, zone DMA: {low.pages} pages in unavailable ranges"], LOW),
    may("dmesg", "", &["On node 0, zone DMA32: {top.pages} pages in unavailable ranges"], TOP),
    may("dmesg", "", &["e820: reserve RAM buffer [mem 0x{low.first}-0x*]"], LOW),
    may("dmesg", "", &["e820: reserve RAM buffer [mem 0x{top.first}-0x*]"], TOP),
    may(
        "dmesg",
        "",
        &["PM: hibernation: Registered nosave memory: [mem 0x{low.first}-0x{low.last}]"],
        LOW,
    ),
    may(
        "dmesg",
        "",
        &["PM: hibernation: Registered nosave memory: [mem 0x{top.first}-0x{top.last}]"],
        TOP,
    ),
    must(
        "dmesg",
        "Built 1 zonelists, mobility grouping on.  Total pages: *",
        &["Built 1 zonelists, mobility grouping on.  Total pages: *"],
        SIZE,
    ),
    must(
        "dmesg",
        "Memory: * available (* bss, * reserved, *)",
        &["Memory: * available ($2 bss, * reserved, $4)"],
        SIZE,
    ),
    may("dmesg", "RAMDISK: [mem *]", &["RAMDISK: [mem *]"], PLACE),
    may("dmesg", "NODE_DATA(0) allocated [mem *]", &["NODE_DATA(0) allocated [mem *]"], PLACE),
    must("dmesg", "Performance Events: PEBS fmt0-, *", &["Performance Events: $1"], STORE_USER),
    may("dmesg", "input: * as */input/input*", &["input: $1 as $2/input/input*"], NUMBER),
    may("dmesg", "tsc: Detected * MHz processor", &["tsc: Detected * MHz processor"], TIME),
    may("dmesg", "tsc: Refined TSC *", &["tsc: Refined TSC *"], TIME),
    may(
        "dmesg",
        "clocksource: tsc*: mask: * max_cycles: *",
        &["clocksource: tsc$1: mask: $2 max_cycles: *"],
        TIME,
    ),
    may(
        "dmesg",
        "Calibrating delay loop (skipped), * timer frequency.. *",
        &["Calibrating delay loop (skipped), $1 timer frequency.. *"],
        TIME,
    ),
    may(
        "dmesg",
        "smpboot: Total of * processors activated (*)",
        &["smpboot: Total of $1 processors activated (*)"],
        TIME,
    ),
    may("dmesg", "sched_clock: Marking stable *", &["sched_clock: Marking stable *"], TIME),
    may(
        "dmesg",
        "node 0 deferred pages initialised in *",
        &["node 0 deferred pages initialised in *"],
        TIME,
    ),
    may("dmesg", "audit: type=2000 audit(*): *", &["audit: type=2000 audit(*): $2"], TIME),
    may(
        "dmesg",
        "rtc_cmos *: setting system clock to *",
        &["rtc_cmos $1: setting system clock to *"],
        TIME,
    ),
    may("dmesg", "pci *: * took * usecs", &["pci $1: $2 took * usecs"], TIME),
];
