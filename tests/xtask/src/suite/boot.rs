//! `boot/…`: the visor boots unmodified hosts, or says in one line why it does not.
//!
//! A test is a [`Boot`] with expectations, under a name and with its cost in processor seconds.

use super::{Boot, Host, Stack, Test};
use crate::machine::{End, Loader, Runner};

/// A Linux host that does `actions` and switches the machine off.
fn small(actions: &str) -> Host {
    Host::Small(format!("init.do={actions}"))
}

/// The tests of this group.
pub(crate) fn tests() -> Vec<Test> {
    bare()
}

/// The test bed by itself: what fails here fails without the visor.
fn bare() -> Vec<Test> {
    vec![
        Boot::of(Stack::bare(small("")))
            .expect(&["init: userspace reached*", "init: done"])
            .ends(End::PowerOff)
            .test("boot/bare-linux", 4),
        Boot::of(Stack::bare(small("")))
            .on(|machine| machine.cpus = 2)
            .expect(&["init: userspace reached*", "init: done"])
            .ends(End::PowerOff)
            .test("boot/bare-linux-2-cpus", 8),
        Boot::of(Stack::bare(Host::Stock(String::new())))
            .on(|machine| machine.seconds = 450)
            .expect(&["init: userspace reached*", "init: done"])
            .ends(End::PowerOff)
            .test("boot/bare-stock-linux", 80),
        Boot::of(Stack::bare(Host::Xen {
            xen: String::new(),
            dom0: String::new(),
        }))
        .expect(&["*HVM: VMX enabled*", "*init: xen dom0", "*init: done"])
        .ends(End::PowerOff)
        .test("boot/bare-xen", 10),
        Boot::of(Stack::bare(Host::Probe("cpuid".to_owned())))
            .expect(&["probe: *"])
            .test("boot/bare-probe", 1),
        Boot::of(Stack::bare(small("")))
            .on(|machine| {
                machine.runner = Runner::QemuTcg;
                machine.loader = Loader::GrubEfi;
            })
            .expect(&["init: userspace reached*", "init: done"])
            .ends(End::PowerOff)
            .test("boot/bare-linux-uefi", 20),
    ]
}
