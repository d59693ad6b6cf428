#![no_std]
#![doc = include_str!("../README.md")]

mod anchor;
mod bytes;
mod cache;
mod checkpoint;
pub mod create;
mod data;
mod frame;
pub mod geometry;
pub mod header;
mod key;
mod log;
mod reader;
mod record;
mod replay;
mod run;
pub mod storage;
mod table;
mod tree;
pub mod volume;
