//! Sets of attacks: what must become of each, and how they are told of.

use std::collections::BTreeMap;

use crate::suite::protected::{self, Want};
use crate::suite::qemu_attacks;

/// Attacks that one machine does.
#[derive(Debug)]
pub(super) struct Set {
    /// What must become of each.
    pub(super) wanted: BTreeMap<String, Want>,
    /// How the line of an attack begins.
    pub(super) line: &'static str,
    /// In the order of the table; the first that claims a name has it, and the last claims all.
    pub(super) groups: &'static [Group],
}

/// Attacks on a Linux VM of the distribution's QEMU.
pub(super) fn linux() -> Set {
    Set { wanted: qemu_attacks::attacks(), line: qemu_attacks::LINE, groups: LINUX }
}

/// Attacks on a small VM of `vmm`.
pub(super) fn small() -> Set {
    Set { wanted: protected::attacks(), line: protected::LINE, groups: SMALL }
}

/// The search of the memory by the harness, which no line of the machine tells of.
pub(super) const AFTER: &str = "search-for-what-is-left";
const AFTER_WORDS: &str = "The VM has ended. All memory of the machine, the visor's too, is searched for its \
                           secret from outside.";

/// Attacks of one kind.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) title: &'static str,
    /// What root did, in plain words.
    pub(super) words: &'static str,
    /// How the names of its attacks begin. The first group that claims a name has it.
    pub(super) names: &'static [&'static str],
}

/// Those on the small VM of `vmm`.
const SMALL: &[Group] = &[
    Group {
        title: "launch",
        words: "Before the VM runs, root changes its first instruction, its code, its memory, and \
                adds a processor.",
        names: &["launch-", "plant-", "add-processor"],
    },
    Group {
        title: "read memory",
        words: "Root looks for a secret in the VM's memory: in the VMM's mapping, through /proc, a \
                pipe, a child process, another VM, and through /dev/mem in all of the host's \
                memory.",
        names: &["read-", "scan-", "write-to-pipe"],
    },
    Group {
        title: "read registers",
        words: "Root asks KVM for the registers that hold a secret, in each way that KVM has, at \
                each kind of exit.",
        names: &["get-"],
    },
    Group {
        title: "change registers",
        words: "Root sets registers: the next instruction, the stack, data, control registers, \
                tables, MSRs.",
        names: &["set-"],
    },
    Group {
        title: "disturb",
        words: "Root steps through the VM, sets a breakpoint, forges exceptions and interrupts, and \
                offers it KVM's own features.",
        names: &["single-step", "breakpoint", "inject-", "interrupt-", "offer-"],
    },
    Group {
        title: "write memory",
        words: "Root overwrites the VM's code, data and interrupt table: in the mapping, through \
                /proc and /dev/mem, from another VM.",
        names: &["write-"],
    },
    Group {
        title: "exchange pages",
        words: "Root swaps pages, brings back old contents, maps a page twice, takes pages away, and \
                loses the VM's stores.",
        names: &["swap-", "other-", "replay-", "move-", "alias-", "drop-", "fresh-", "lose-"],
    },
    Group {
        title: "devices",
        words: "Root puts memory where the VM has a device, watches its stores, and changes the page by \
                which the visor tells of devices.",
        names: &["memory-at-device", "see-", "window-"],
    },
    Group { title: "after the end", words: AFTER_WORDS, names: &[AFTER] },
    Group { title: "others", words: "Attacks of no other group.", names: &[""] },
];

/// Those on a Linux VM of QEMU's.
const LINUX: &[Group] = &[
    Group {
        title: "read memory",
        words: "Root looks for a secret of the VM: in QEMU's process, by two commands of QEMU's monitor, by a \
                debugger at the VM's own address, in the secret's frame, and in all of the host's memory.",
        names: &["read-", "dump-", "search-all-"],
    },
    Group {
        title: "read registers",
        words: "Root looks for the secret in the VM's registers, by monitor and debugger, and by KVM itself, \
                in QEMU's name; for its page tables, its kernel's entry point and where its kernel lies.",
        names: &[
            "registers-by-",
            "vectors-by-",
            "tables-by-",
            "msrs-by-",
            "translate-by-",
            "step-by-",
            "breakpoint-by-",
        ],
    },
    Group {
        title: "change registers",
        words: "Root sets data, and the next instruction.",
        names: &["registers-set-", "instruction-set-"],
    },
    Group {
        title: "inject code",
        words: "Root replaces a function of the VM's program, and one of its kernel.",
        names: &["inject-code-"],
    },
    Group {
        title: "inject exceptions",
        words: "Root has KVM deliver exceptions that nothing has caused, as such and as interrupts.",
        names: &["inject-", "interrupt-by-"],
    },
    Group {
        title: "change memory",
        words: "Root overwrites data and the secret, exchanges pages, also with another VM, brings back \
                an old one, and takes one away.",
        names: &["write-", "swap-", "exchange-", "replay-", "drop-"],
    },
    Group { title: "after the end", words: AFTER_WORDS, names: &[AFTER] },
    Group { title: "others", words: "Attacks of no other group.", names: &[""] },
];
