//! Sealed disks of the VM.

use std::path::PathBuf;

use image::key;
use ticket::Secret;

use crate::Error;

/// A disk that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// The number of the virtio device.
    number: u32,
    key: PathBuf,
    image: PathBuf,
}

/// Reads what is said of a disk: `NUMBER,KEY,IMAGE`. An image may have commas in its name.
pub(crate) fn disk(text: &str) -> Result<Disk, String> {
    let mut parts = text.splitn(3, ',');
    let mut part = || parts.next().filter(|part| !part.is_empty());
    let (Some(number), Some(key), Some(image)) = (part(), part(), part()) else {
        return Err("a disk is NUMBER,KEY,IMAGE".into());
    };
    let number = number.parse().map_err(|_| "the number of a device, from 0 on, comes first")?;
    Ok(Disk { number, key: key.into(), image: image.into() })
}

/// What a ticket says of these disks, as they are now.
pub(crate) fn read(disks: &[Disk]) -> Result<Vec<ticket::Disk>, Error> {
    let one = |disk: &Disk| {
        let wrong = |why| Error::Disk(disk.image.clone(), why);
        let key = key::read(&disk.key).map_err(wrong)?;
        let found = image::info(&disk.image, &key).map_err(wrong)?;
        Ok(ticket::Disk {
            transport: disk.number,
            blocks: found.capacity,
            total: found.total,
            id: found.id,
            key: Secret::new(key),
            moment: found.moment,
        })
    };
    let mut disks: Vec<ticket::Disk> = disks.iter().map(one).collect::<Result<_, _>>()?;
    disks.sort_by_key(|disk| disk.transport);
    Ok(disks)
}

#[cfg(test)]
mod tests {
    use super::{Disk, disk};

    #[test]
    fn a_disk_is_a_number_a_key_and_an_image() {
        let made = disk("3,a.key,b,c.img").unwrap();
        assert_eq!(made, Disk { number: 3, key: "a.key".into(), image: "b,c.img".into() });
        for wrong in ["", "3", "3,a", "3,a,", ",a,b", "x,a,b", "-1,a,b", "3,,b"] {
            assert!(disk(wrong).is_err(), "{wrong}");
        }
    }
}
