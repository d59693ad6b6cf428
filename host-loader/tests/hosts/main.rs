//! Hosts of every kind, from the handoff to the kernel's first instruction.
#![cfg(test)]

mod bios;
mod handoff;
mod linux;
mod machine;
mod multiboot;
mod placement;
