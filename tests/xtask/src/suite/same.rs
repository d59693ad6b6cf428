//! `boot/sees-the-same…`: a host finds the machine on the visor that it finds without it.
//!
//! The same Linux boots twice and reports what it sees. A difference that no rule of [`rules::RULES`]
//! explains fails the test, and so does a rule that must apply and does not: nothing passes because
//! two reports are empty or because the visor was not there.

mod comparison;
mod report;
mod rules;

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::{Boot, Host, Rig, Stack, Test};
use crate::machine::End;
use comparison::Comparison;
use report::{Report, captures};

/// What the visor keeps below 1 MiB to start processors with: three pages.
const LOW_LENGTH: u64 = 0x3000;

/// How far MemTotal may lie below what the reservation explains, in KiB: the low pages, and tables
/// whose size follows the memory's layout.
const MEMORY_SLACK: u64 = 256;

/// The tests of this file.
pub(super) fn tests() -> Vec<Test> {
    vec![
        Test::new("boot/sees-the-same", 190, |rig| sees_the_same(rig, 1, "0")),
        Test::new("boot/sees-the-same-2-cpus", 250, |rig| sees_the_same(rig, 2, "0-1")),
    ]
}

/// The distribution's Linux sees the same machine with `cpus` processors, `online` in its own
/// words, on the visor and without. `differences.txt` in the folder says what differs and why.
fn sees_the_same(rig: &Rig<'_>, cpus: u32, online: &str) -> Result<()> {
    let report = |label, stack: fn(Host) -> Stack| {
        let host = Host::Stock("init.do=report,stats".to_owned());
        let boot = Boot::of(stack(host))
            .on(|machine| {
                machine.cpus = cpus;
                machine.seconds = 450;
            })
            .expect(&["*init: userspace reached*", "=== end", "*init: done"])
            .never("visor: [warn] refused*")
            .ends(End::PowerOff);
        rig.check(label, &boot)
    };
    let bare = report("bare", Stack::bare)?;
    let visor = report("visor", Stack::on_visor)?;
    let comparison = compare(&bare, &visor, online)?;
    let file = rig.dir.join("differences.txt");
    fs::write(&file, comparison.text()).context("cannot write differences.txt")?;
    if !comparison.wrong.is_empty() {
        let (wrong, file) = (comparison.wrong.join("\n    "), file.display());
        bail!("the host does not see the same:\n    {wrong}\n    all differences: {file}");
    }
    Ok(())
}

/// Compares what came over the serial line in both boots.
fn compare(bare: &str, visor: &str, online: &str) -> Result<Comparison> {
    let (bare_report, visor_report) = (Report::of(bare)?, Report::of(visor)?);
    let holes = Holes::of(&bare_report, &visor_report, visor)?;
    let mut comparison = Comparison::of(&bare_report, &visor_report, &holes);
    for (label, report) in [("bare", &bare_report), ("visor", &visor_report)] {
        if report.section("online") != [online] {
            let seen = report.section("online").join(" ");
            comparison.wrong.push(format!("{label}: processors {seen} are online, not {online}"));
        }
    }
    if let Err(error) = memory_lost(&bare_report, &visor_report, &holes) {
        comparison.wrong.push(format!("{error:#}"));
    }
    Ok(comparison)
}

/// Memory that the visor keeps.
#[derive(Clone, Copy, Debug)]
struct Kept {
    first: u64,
    length: u64,
}

/// The low pages and the reservation.
#[derive(Clone, Copy, Debug)]
struct Holes {
    low: Kept,
    top: Kept,
}

impl Holes {
    /// The reservation as the control port has it, the low pages as the memory map shows them.
    fn of(bare: &Report, visor: &Report, serial: &str) -> Result<Self> {
        let value = |name: &str| {
            let line = serial.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|text| text.trim().parse().ok());
            value.with_context(|| format!("no line \"{name}NUMBER\""))
        };
        let top = Kept {
            first: value("stats: reservation.base ")?,
            length: value("stats: reservation.length ")?,
        };
        let new = |line: &&String| !bare.section("dmesg").contains(line);
        let mut low = visor.section("dmesg").iter().filter(new).filter_map(|line| {
            let ends = captures("BIOS-e820: [mem 0x*-0x*] reserved", line)?;
            let mut ends = ends.iter().map(|end| u64::from_str_radix(end, 16).ok());
            let (first, last) = (ends.next()??, ends.next()??);
            let length = last.checked_sub(first)? + 1;
            (last < 1 << 20).then_some(Kept { first, length })
        });
        let low = low.next().context("no low memory is reserved")?;
        ensure!(low.length == LOW_LENGTH, "{} bytes of low memory are reserved", low.length);
        Ok(Self { low, top })
    }

    /// `pattern` with every edge and size, and with `texts` for `$1`, `$2`…
    fn fill(&self, pattern: &str, texts: &[&str]) -> String {
        let mut line = pattern.to_owned();
        for (name, Kept { first, length }) in [("low", self.low), ("top", self.top)] {
            let after = first.saturating_add(length);
            let before = first.saturating_sub(1);
            line = line
                .replace(&format!("{{{name}.before}}"), &format!("{before:08x}"))
                .replace(&format!("{{{name}.first}}"), &format!("{first:08x}"))
                .replace(&format!("{{{name}.last}}"), &format!("{:08x}", after.saturating_sub(1)))
                .replace(&format!("{{{name}.after}}"), &format!("{after:08x}"))
                .replace(&format!("{{{name}.pages}}"), &(length / 4096).to_string());
        }
        for (at, text) in texts.iter().enumerate() {
            line = line.replace(&format!("${}", at + 1), text);
        }
        line
    }
}

/// Checks that MemTotal lost what the visor keeps, and little more.
fn memory_lost(bare: &Report, visor: &Report, holes: &Holes) -> Result<()> {
    let total = |report: &Report| {
        let line = report.section("meminfo").first()?;
        captures("MemTotal: * kB", line)?.first()?.parse::<u64>().ok()
    };
    let (bare, visor) = (total(bare), total(visor));
    let lost = bare.zip(visor).and_then(|(bare, visor)| bare.checked_sub(visor));
    let lost = lost.context("the host has more memory on the visor")?;
    let kept = holes.top.length / 1024;
    ensure!(
        (kept..=kept + MEMORY_SLACK).contains(&lost),
        "the host lost {lost} KiB of memory to a visor that keeps {kept} KiB"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: &str = "dts dtes64 ds_cpl pebs bts flexpriority";
    const VMX_FLAGS: &str = "flexpriority vapic vapic_reg vid shadow_vmcs";

    /// A report of the bare machine with all that rules require, and `cpus` processors.
    fn bare(cpus: &[u32]) -> String {
        let mut text = String::from("init: userspace reached tsc=1\n=== cpuinfo\n");
        for cpu in cpus {
            text += &format!("processor\t: {cpu}\nflags\t\t: fpu {FLAGS} sse\n");
            text += &format!("vmx flags\t: vnmi {VMX_FLAGS} ept\nbogomips\t: 40.00\n\n");
        }
        let online = cpus.iter().map(u32::to_string).collect::<Vec<_>>();
        text + "=== iomem\n\
            00000000-00000fff : Reserved\n\
            00001000-0009fbff : System RAM\n\
            00100000-1fffdfff : System RAM\n  01000000-01800537 : Kernel code\n\
            === online\n"
            + &online.join("-")
            + "\n\
            === meminfo\nMemTotal:         499072 kB\nMemFree: 1 kB\n\
            === mtrr\nreg00: base=0x080000000\n\
            === pci\n0000:00:00.0 0x8086:0x1237 class 0x060000\n\
            === dmesg\n\
            <5>[    0.000000] Linux version 6.1\n\
            <6>[    0.000000] Command line: BOOT_IMAGE=/a initrd=/b quiet x=y\n\
            <6>[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009fbff] usable\n\
            <6>[    0.000000] BIOS-e820: [mem 0x0000000000100000-0x000000001fffdfff] usable\n\
            <6>[    0.200000]   node   0: [mem 0x0000000000001000-0x000000000009efff]\n\
            <6>[    0.200000]   node   0: [mem 0x0000000000100000-0x000000001fffdfff]\n\
            <6>[    0.300000] Built 1 zonelists, mobility grouping on.  Total pages: 128766\n\
            <5>[    0.300000] Kernel command line: BOOT_IMAGE=/a initrd=/b quiet x=y\n\
            <6>[    0.400000] Memory: 4K/9K available (8K kernel code, 2K bss, 3K reserved, 0K cma)\n\
            <6>[    0.500000] Performance Events: PEBS fmt0-, Haswell events.\n\
            === end\n"
    }

    /// What [`bare`] becomes on a visor that keeps 4 MiB.
    fn visor(cpus: &[u32]) -> String {
        let mut text = bare(cpus);
        for (old, new) in [
            (format!("{FLAGS} "), ""),
            (format!("{VMX_FLAGS} "), ""),
            ("40.00".to_owned(), "39.99"),
            ("499072".to_owned(), "494976"),
            ("4K/9K".to_owned(), "3K/8K"),
            ("BOOT_IMAGE=/a initrd=/b ".to_owned(), ""),
            ("128766".to_owned(), "127449"),
            ("PEBS fmt0-, ".to_owned(), ""),
            ("0.500000".to_owned(), "0.612345"),
        ] {
            text = text.replace(&old, new);
        }
        for (old, new) in [
            (
                "00001000-0009fbff : System RAM\n00100000-1fffdfff : System RAM\n",
                "00001000-0007cfff : System RAM\n0007d000-0007ffff : Reserved\n\
                 00080000-0009fbff : System RAM\n00100000-1f9fffff : System RAM\n\
                 1fa00000-1fdfffff : Reserved\n1fe00000-1fffdfff : System RAM\n",
            ),
            (
                "0000-0x000000000009fbff] usable\n",
                "0000-0x000000000007cfff] usable\n\
                 BIOS-e820: [mem 0x000000000007d000-0x000000000007ffff] reserved\n\
                 BIOS-e820: [mem 0x0000000000080000-0x000000000009fbff] usable\n",
            ),
            (
                "0000-0x000000001fffdfff] usable\n",
                "0000-0x000000001f9fffff] usable\n\
                 BIOS-e820: [mem 0x000000001fa00000-0x000000001fdfffff] reserved\n\
                 BIOS-e820: [mem 0x000000001fe00000-0x000000001fffdfff] usable\n",
            ),
            (
                "1000-0x000000000009efff]\n",
                "1000-0x000000000007cfff]\n  node   0: [mem 0x0000000000080000-0x000000000009efff]\n",
            ),
            (
                "0000-0x000000001fffdfff]\n",
                "0000-0x000000001f9fffff]\n  node   0: [mem 0x000000001fe00000-0x000000001fffdfff]\n",
            ),
        ] {
            text = text.replace(old, new);
        }
        text + "stats: reservation.base 530579456\nstats: reservation.length 4194304\n"
    }

    /// What is wrong when the visor's report of one processor has `new` in place of `old`.
    fn wrong(old: &str, new: &str) -> Vec<String> {
        let text = visor(&[0]);
        assert!(text.contains(old), "{old} is not in the text");
        compare(&bare(&[0]), &text.replace(old, new), "0").unwrap().wrong
    }

    #[test]
    fn differences_that_rules_explain_are_told_with_their_reasons() {
        let comparison = compare(&bare(&[0]), &visor(&[0]), "0").unwrap();
        assert_eq!(comparison.wrong, Vec::<String>::new());
        let text = comparison.text();
        assert!(text.contains("only the TPR is safe:\n  - cpu 0: vmx flags: flexpriority\n"));
        assert!(text.contains("+ 1fa00000-1fdfffff : Reserved\n"));
    }

    #[test]
    fn a_line_that_no_rule_explains_fails_in_every_section() {
        for (old, new, expected) in [
            (" sse\n", " sse avx\n", "cpuinfo: no rule explains: + cpu 0: flags: avx"),
            (" sse\n", "\n", "cpuinfo: no rule explains: - cpu 0: flags: sse"),
            (
                "01800537",
                "01800538",
                "iomem: no rule explains: -   01000000-01800537 : Kernel code",
            ),
            ("0x080000000", "0x0c0000000", "mtrr: no rule explains: - reg00: base=0x080000000"),
            (
                "0x1237",
                "0x1238",
                "pci: no rule explains: + 0000:00:00.0 0x8086:0x1238 class 0x060000",
            ),
            ("Linux version", "Linux Version", "dmesg: no rule explains: - Linux version 6.1"),
            (
                "=== end",
                "[Firmware Bug]: new\n=== end",
                "dmesg: no rule explains: + [Firmware Bug]: new",
            ),
        ] {
            let wrong = wrong(old, new);
            assert!(wrong.iter().any(|line| line == expected), "{expected}: {wrong:?}");
        }
    }

    #[test]
    fn a_map_that_is_wrong_by_a_page_fails() {
        let wrong = wrong("1fe00000-1fffdfff : System RAM", "1fe01000-1fffdfff : System RAM");
        let line = "iomem: no rule explains: + 1fe01000-1fffdfff : System RAM";
        assert!(wrong.iter().any(|wrong| wrong == line), "{wrong:?}");
    }

    #[test]
    fn a_flag_that_must_be_hidden_fails_if_one_processor_shows_it() {
        let text = visor(&[0, 1]);
        assert_eq!(compare(&bare(&[0, 1]), &text, "0-1").unwrap().wrong.len(), 0);
        let (first, second) = text.split_once("processor\t: 1").unwrap();
        let text = format!("{first}processor\t: 1{}", second.replacen("fpu", "fpu dts", 1));
        let wrong = compare(&bare(&[0, 1]), &text, "0-1").unwrap().wrong;
        let line = "cpuinfo: missing difference: - cpu *: flags: dts: ";
        assert!(matches!(&wrong[..], [wrong] if wrong.starts_with(line)), "{wrong:?}");
    }

    #[test]
    fn a_machine_that_never_had_a_hidden_feature_proves_nothing() {
        let without = bare(&[0]).replace("fpu dts ", "fpu ");
        let wrong = compare(&without, &visor(&[0]), "0").unwrap().wrong;
        assert!(
            wrong
                .iter()
                .any(|line| line.starts_with("cpuinfo: missing difference: - cpu *: flags: dts:"))
        );
    }

    #[test]
    fn two_boots_without_the_visor_fail() {
        let stats = "stats: reservation.base 530579456\nstats: reservation.length 4194304\n";
        let error = compare(&bare(&[0]), &bare(&[0]), "0").unwrap_err();
        assert_eq!(error.to_string(), "no line \"stats: reservation.base NUMBER\"");
        let error = compare(&bare(&[0]), &(bare(&[0]) + stats), "0").unwrap_err();
        assert_eq!(error.to_string(), "no low memory is reserved");
    }

    #[test]
    fn more_low_memory_than_is_said_fails() {
        let text = visor(&[0]).replace("7d000", "7c000").replace("7cfff", "7bfff");
        let error = compare(&bare(&[0]), &text, "0").unwrap_err();
        assert_eq!(error.to_string(), "16384 bytes of low memory are reserved");
    }

    #[test]
    fn memory_that_is_lost_without_a_reason_fails() {
        let line = "the host lost 6096 KiB of memory to a visor that keeps 4096 KiB";
        assert_eq!(wrong("494976", "492976"), [line]);
    }

    #[test]
    fn a_processor_that_stays_offline_on_both_sides_fails() {
        let wrong = compare(&bare(&[0]), &visor(&[0]), "0-1").unwrap().wrong;
        assert_eq!(wrong.len(), 2, "{wrong:?}");
    }
}
