//! Images that machines boot from.

pub(crate) mod cpio;
pub(crate) mod iso;
