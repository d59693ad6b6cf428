#![no_std]
#![doc = include_str!("../README.md")]

pub mod access;
pub mod context;
pub mod walk;
