//! A virtual machine monitor on KVM's raw interface.
//!
//! Its arguments name tests, which run one after the other; `all` stands for every one that needs
//! nothing special. Each ends with one line `vmm: PASS name` or `vmm: FAIL name: why`. `cost` is one
//! too: it measures. `linux ACTIONS` boots `/kernel` with `/initrd2`, whose `init` does the actions, and
//! `linux-2m ACTIONS` does so in huge pages; `linux-reset` begins at the reset vector, and `linux-protected`
//! and `linux-2m-protected` with a ticket, too.

mod code;
mod cost;
mod kvm;
mod linux;
mod memory;
mod meter;
mod mode;
mod mp;
mod port;
mod protected;
mod tests;
mod threads;
mod uart;
mod vm;
mod work;
mod xen;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let mut failed = false;
    if let [word, actions] = words.as_slice()
        && let Some(shape) = linux::shape(word)
    {
        failed |= told(word, linux::boot(word, shape, actions));
    } else {
        for (name, test) in tests::selected(&words) {
            failed |= told(&name, test());
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Says how a test went; whether it failed.
fn told(name: &str, result: Result<(), String>) -> bool {
    match &result {
        Ok(()) => println!("vmm: PASS {name}"),
        Err(why) => println!("vmm: FAIL {name}: {why}"),
    }
    result.is_err()
}
