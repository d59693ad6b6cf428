//! `/init` of the test kernels.
//!
//! It mounts what it needs, says when userspace was reached, runs the actions of `init.do=a,b,c`
//! from the kernel command line one after the other, and powers the machine off. Everything it
//! prints goes to the kernel's console in lines that begin with `init: `, or between markers
//! `=== section` and `=== end`.

mod beats;
mod devmem;
mod disk_io;
mod edu;
mod end;
mod exchange;
mod heart;
mod hotplug;
mod interface;
mod kexec;
mod kvm;
mod owners;
mod port;
mod report;
mod root;
mod secret;
mod system;
mod tpm;
mod unit;
mod virtio;

use std::arch::x86_64::_rdtsc;

/// What this kernel was told.
struct CommandLine(String);

impl CommandLine {
    fn read() -> Self {
        Self(system::text("/proc/cmdline"))
    }

    /// The value of the last word `key=value`.
    fn value(&self, key: &str) -> Option<&str> {
        self.0
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value)
            .next_back()
    }
}

fn main() {
    // SAFETY: RDTSC is always allowed here and touches no memory.
    let reached = unsafe { _rdtsc() };
    system::mount_all();
    system::take_console();
    println!("init: userspace reached tsc={reached}");
    if system::text("/sys/hypervisor/type").trim() == "xen" {
        println!("init: xen dom0");
    }
    let line = CommandLine::read();
    for action in line.value("init.do").unwrap_or("").split(',') {
        if let Err(why) = run(action, &line) {
            println!("init: {action}: {why}");
        }
    }
    println!("init: done");
    end::power_off();
}

/// Runs one action; some do not return. `run:/program+argument+argument` is any program.
fn run(action: &str, line: &CommandLine) -> Result<(), String> {
    match action {
        "" | "poweroff" => Ok(()),
        "report" => {
            report::print();
            Ok(())
        }
        "stats" => port::print_stats(),
        "reboot" | "triple-fault" => end::reboot_once(),
        "reboot-always" => {
            secret::spread();
            end::reboot()
        }
        "beats" => beats::go_on(),
        "breaths" => beats::breathe(),
        "kexec" => kexec::into_second_kernel(&line.0, line.value("init.next").unwrap_or("")),
        "online" => {
            println!("init: processors {}", system::text("/sys/devices/system/cpu/online").trim());
            Ok(())
        }
        "cpu-hotplug" => hotplug::cycle(1),
        "devmem" => devmem::attack(line.value("init.reservation")),
        "secret" => secret::make(),
        "stay" => {
            std::thread::sleep(std::time::Duration::from_secs(10));
            Ok(())
        }
        "drivers" => system::load_drivers(),
        "root" => root::switch("/dev/vda"),
        "disk" => virtio::disk("/dev/vda"),
        "disk-kept" => virtio::kept("/dev/vda"),
        "disk-io" => disk_io::measure("/dev/vda"),
        "disks" => virtio::disks(),
        "network" => virtio::network(),
        "card" => virtio::card(),
        "no-iommu" => unit::is_hidden(),
        "tpm" => tpm::look(),
        "tpm-locality" => tpm::attack(),
        "dma" => edu::attack(),
        "owners" => owners::change(),
        "switch-off" => owners::behind_an_open_unit(),
        "random" => virtio::random(),
        "console" => exchange::console(),
        "files" => exchange::files(),
        "heart" => heart::beat(),
        "shell" => system::shell(),
        "kvm-load" => kvm::load(),
        "kvm-unload" => kvm::unload(),
        "guest" => guest("linux", line),
        "guest-2m" => guest("linux-2m", line),
        "guest-reset" => guest("linux-reset", line),
        "guest-smp" => guest("linux-smp", line),
        "guest-smp-protected" => guest("linux-smp-protected", line),
        "guest-protected" => guest("linux-protected", line),
        "guest-2m-protected" => guest("linux-2m-protected", line),
        _ if action.starts_with("run:") => {
            system::run(&action["run:".len()..].split('+').collect::<Vec<_>>())
        }
        _ => Err("no such action".to_owned()),
    }
}

/// A Linux VM, whose own actions are those of `init.next=`.
fn guest(word: &str, line: &CommandLine) -> Result<(), String> {
    system::run(&["/vmm", word, line.value("init.next").unwrap_or("")])
}
