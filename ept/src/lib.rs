#![no_std]
//! Who owns each page frame of the machine, and the page tables that follow from it.

pub mod addr;
pub mod list;
